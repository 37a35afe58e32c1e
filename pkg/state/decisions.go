package state

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/podrole/podrole/pkg/role"
)

const (
	kindDecision  = "decision"
	kindConfirmed = "confirmed"
	confirmedName = "confirmed"
)

// Decision is the Grant of a pod that runs on this node.
type Decision struct {
	Workload role.Workload
	Grant    role.Grant
	// Policy identifies the settings under which it was decided, in whatever way the agent chooses. Empty: not known.
	Policy string
	// Decided is when it was last known to be so: when it was decided, or confirmed for the last time.
	Decided time.Time
	// Unreadable is the message of the Denial in spite of which the Grant is kept, until Until. Empty: there is none.
	Unreadable string
	Until      time.Time
	// MetadataAllow is the list of what the pod may read of the node's metadata besides what every pod may.
	MetadataAllow string
}

// decisionRecord is a Decision as it is written.
type decisionRecord struct {
	header
	Workload   workloadRecord `json:"workload"`
	Grant      grantRecord    `json:"grant"`
	Policy     string         `json:"policy,omitempty"`
	Decided    time.Time      `json:"decided"`
	Unreadable string         `json:"unreadable,omitempty"`
	Until      time.Time      `json:"until,omitzero"`

	MetadataAllow string `json:"metadata_allow,omitempty"`
}

type confirmedRecord struct {
	header
	At time.Time `json:"at"`
}

// Decisions keeps the Grants of pods for an agent that starts while the API server cannot be asked. Its methods other
// than Run never wait for the file system. It is safe for concurrent use.
type Decisions struct {
	dir  *Dir
	wake chan struct{} // holds one element when there is something to write

	mu        sync.Mutex           // guards the following
	pending   map[string]*Decision // by UID; nil: to be removed
	confirmed time.Time            // to be written; zero: nothing
}

// Decisions returns the part of d about pods. There should be one of it at a time.
func (d *Dir) Decisions() *Decisions {
	return &Decisions{dir: d, wake: make(chan struct{}, 1), pending: make(map[string]*Decision)}
}

// Put keeps what was decided of a pod, in place of what was decided before.
func (s *Decisions) Put(v Decision) { s.change(func() { s.pending[v.Workload.UID] = &v }) }

// Delete forgets a pod that is gone, or that has no Grant any more.
func (s *Decisions) Delete(uid string) { s.change(func() { s.pending[uid] = nil }) }

// Confirm says that all decisions there are were still true at that time. To be called every minute or so, while the API
// server is known to answer: an age counts from then.
func (s *Decisions) Confirm(at time.Time) { s.change(func() { s.confirmed = at }) }

func (s *Decisions) change(f func()) {
	s.mu.Lock()
	f()
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run writes what was put and deleted until ctx ends, and then the rest. What cannot be written is logged, and tried again
// with what comes next.
func (s *Decisions) Run(ctx context.Context) error {
	for {
		s.flush()
		select {
		case <-s.wake:
		case <-ctx.Done():
			s.flush()
			return nil
		}
	}
}

// flush writes what is pending.
func (s *Decisions) flush() {
	s.mu.Lock()
	pending, confirmed := s.pending, s.confirmed
	s.pending, s.confirmed = make(map[string]*Decision), time.Time{}
	s.mu.Unlock()
	var errs []error
	for uid, v := range pending {
		if err := s.write(uid, v); err != nil {
			errs = append(errs, err)
			s.again(uid, v)
		}
	}
	if !confirmed.IsZero() && len(errs) == 0 { // else what is there may be what was true before
		errs = append(errs, s.dir.write(func() error {
			data, err := json.Marshal(confirmedRecord{header{version, kindConfirmed}, confirmed.Round(0)})
			if err != nil {
				return fmt.Errorf("encode time: %w", err)
			}
			return s.dir.replace(confirmedName, data)
		}))
	}
	if err := errors.Join(errs...); err != nil {
		s.dir.logger.Warn("decisions not kept for the next agent", slog.Any("error", err))
	}
}

// again has a decision that could not be written be pending, unless there is a newer one.
func (s *Decisions) again(uid string, v *Decision) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, newer := s.pending[uid]; !newer {
		s.pending[uid] = v
	}
}

func (s *Decisions) write(uid string, v *Decision) error {
	name := hashed(kindDecision, uid)
	if v == nil {
		return s.dir.write(func() error { return s.dir.decisions.remove(name) })
	}
	data, err := json.Marshal(decisionRecord{
		header{version, kindDecision}, workloadRecord(v.Workload), grantRecord(v.Grant), v.Policy, v.Decided.Round(0),
		v.Unreadable, v.Until.Round(0), v.MetadataAllow,
	})
	if err != nil {
		return fmt.Errorf("encode decision on %s: %w", v.Workload, err)
	}
	return s.dir.write(func() error {
		err := s.dir.decisions.put(name, data, validity{until: v.Decided})
		if err != nil && !s.holds(name, v.Grant) {
			err = errors.Join(err, s.dir.decisions.remove(name)) // what was true before is worse than nothing
		}
		return err
	})
}

// holds reports whether the file of that name, whatever else it says, is of that Grant.
func (s *Decisions) holds(name string, g role.Grant) bool {
	data, err := s.dir.read(path.Join(s.dir.decisions.name, name))
	if err != nil {
		return false
	}
	v, err := parseDecision(name, data)
	return err == nil && v.Grant == g
}

// Recent returns the decisions that an earlier agent kept and that are younger than maxAge, in no particular order. A
// Grant that was kept in spite of a Denial is among them only before its time is over. They are what was true then: it
// is the caller's to find out whether the pod still runs, and to say that it goes by them.
func (s *Decisions) Recent(maxAge time.Duration) []Decision {
	s.dir.mu.Lock()
	names := slices.Collect(maps.Keys(s.dir.decisions.files))
	confirmed := s.confirmedAt()
	s.dir.mu.Unlock()
	now := time.Now()
	var recent []Decision
	for _, name := range names {
		var v Decision
		ok := s.dir.load(&s.dir.decisions, name, func(data []byte) (err error) {
			v, err = parseDecision(name, data)
			return err
		})
		if confirmed.After(v.Decided) {
			v.Decided = confirmed
		}
		if ok && now.Sub(v.Decided) < maxAge && (v.Unreadable == "" || now.Before(v.Until)) {
			recent = append(recent, v)
		}
	}
	return recent
}

// confirmedAt reads the time of the last Confirm. Caller holds dir.mu.
func (s *Decisions) confirmedAt() time.Time {
	data, err := s.dir.read(confirmedName)
	if err != nil {
		return time.Time{} // nothing there, or nothing that counts: decisions are as old as they say
	}
	at, err := parseConfirmed(data)
	if err != nil {
		return time.Time{}
	}
	return at
}

// Retain forgets all pods but those with these UIDs. To be called when the pods of this node are known: those that went
// while no agent ran left theirs behind.
func (s *Decisions) Retain(uids map[string]bool) {
	keep := make(map[string]bool, len(uids))
	for uid := range uids {
		keep[hashed(kindDecision, uid)] = true
	}
	err := s.dir.write(func() error {
		var errs []error
		for name := range maps.Clone(s.dir.decisions.files) {
			if !keep[name] {
				errs = append(errs, s.dir.decisions.remove(name))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		s.dir.logger.Warn("decisions on pods that are gone not removed", slog.Any("error", err))
	}
}

// parseDecision reads the file of that name.
func parseDecision(name string, data []byte) (Decision, error) {
	var r decisionRecord
	if err := decode(data, kindDecision, &r); err != nil {
		return Decision{}, err
	}
	v := Decision{role.Workload(r.Workload), role.Grant(r.Grant), r.Policy, r.Decided, r.Unreadable, r.Until, r.MetadataAllow}
	w := r.Workload
	switch {
	case w.Namespace == "" || w.Name == "" || w.UID == "" || w.ServiceAccount == "":
		return v, errors.New("its pod is incomplete")
	case r.Grant.validate() != nil:
		return v, r.Grant.validate()
	case w.Namespace != r.Grant.Namespace || w.ServiceAccount != r.Grant.ServiceAccount:
		return v, errors.New("its grant is of another ServiceAccount than its pod")
	case name != hashed(kindDecision, w.UID):
		return v, errName
	case time.Until(r.Decided) > maxAhead:
		return v, errors.New("it was decided in the future: the clock was set back")
	}
	return v, nil
}

func parseConfirmed(data []byte) (time.Time, error) {
	var r confirmedRecord
	if err := decode(data, kindConfirmed, &r); err != nil {
		return time.Time{}, err
	}
	if time.Until(r.At) > maxAhead {
		return time.Time{}, errors.New("it is in the future: the clock was set back")
	}
	return r.At, nil
}
