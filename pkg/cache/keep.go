package cache

import (
	"log/slog"
	"time"

	"github.com/podrole/podrole/pkg/role"
)

// clockSlack is how far in the future a kept Session may have been minted. One from further on is of a clock that was
// set back since, and nobody knows how long AWS takes it.
const clockSlack = time.Minute

// load returns the Session that the Store kept for g, ready to be served, or nil. It does not ask if g has an entry:
// what is in memory is never older.
func (c *Cache) load(g role.Grant) *Session {
	if c.cfg.Store == nil || (*c.entries.Load())[g] != nil {
		return nil
	}
	now := time.Now()
	kept := c.cfg.Store.Load(g)
	if kept == nil || kept.Grant != g || !kept.live(now) || kept.Minted.Sub(now) > clockSlack {
		return nil
	}
	s := *kept
	if s.RefreshLeft <= 0 || s.RefreshLeft > s.Life() {
		s.RefreshLeft = refreshLeft(s.Life(), 0)
	}
	s.Body = c.cfg.Render(s.Credentials, s.Minted)
	return &s
}

// changed notes that the Store does not have the latest about g. Caller holds mu.
func (c *Cache) changed(g role.Grant) {
	if c.cfg.Store == nil {
		return
	}
	c.unkept[g] = true
	select {
	case c.keepWake <- struct{}{}:
	default:
	}
}

// KeepAll has the Store brought up to date about every Grant, after it has kept nothing for a while.
func (c *Cache) KeepAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for g := range *c.entries.Load() {
		c.changed(g)
	}
}

// keep brings the Store up to date until done is closed and everything is in it. It has a goroutine of its own: a file
// system that hangs delays neither a mint nor a request.
func (c *Cache) keep(done <-chan struct{}) {
	for {
		select {
		case <-c.keepWake:
			c.persist()
		case <-done:
			c.persist()
			return
		}
	}
}

// persist makes the Store agree with memory, as it is by then, about every Grant that changed.
func (c *Cache) persist() {
	c.mu.Lock()
	unkept := c.unkept
	c.unkept = make(map[role.Grant]bool)
	c.mu.Unlock()
	for g := range unkept {
		var s *Session
		if e := (*c.entries.Load())[g]; e != nil {
			s = e.session.Load()
		}
		var err error
		if s != nil {
			err = c.cfg.Store.Save(s)
		} else {
			err = c.cfg.Store.Delete(g)
		}
		if err != nil {
			c.cfg.Logger.Warn("session not kept for the next agent", slog.Any("grant", g), slog.Any("error", err))
		}
	}
}
