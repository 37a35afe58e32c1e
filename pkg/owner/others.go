package owner

import "fmt"

// Others reports whether another agent that has claimed lives, above this one or below: one that serves this node, or
// that will once this agent resigns.
func (c *Claimant) Others() (bool, error) {
	c.mu.Lock()
	mine := c.mine
	c.mu.Unlock()
	f, err := openFolder(c.dir)
	if err != nil {
		return false, fmt.Errorf("look for other agents: %w", err)
	}
	defer f.close()
	claims, _, err := f.claims()
	if err != nil {
		return false, fmt.Errorf("look for other agents: %w", err)
	}
	for _, other := range claims {
		if other == mine {
			continue
		}
		l, err := f.look(other)
		if err != nil {
			return false, fmt.Errorf("look for other agents: %w", err)
		}
		if l != nil {
			l.close()
			return true, nil
		}
	}
	return false, nil
}
