package owner

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	modelTime   = 3 * time.Second
	modelAgents = 3 // at once, at most
	// modelBound is how long it may take until the right agent's rules are whole. It takes milliseconds, but the
	// machine may have better to do.
	modelBound = 10 * time.Second
)

// TestModel starts, kills, stops and ends agents at random moments, and damages their rules. Each round ends with all
// that live running, and then the newest of them owns, it alone, and the rules are its; the journal says whether
// anything went wrong in between.
func TestModel(t *testing.T) {
	m := newModel(t, "", modelBound)
	rounds := 0
	for begin := time.Now(); time.Since(begin) < modelTime; rounds++ {
		if err := m.round(); err != nil {
			t.Fatalf("round %d, seed %d: %v\n%s", rounds, m.seed, err, m.tail())
		}
	}
	t.Logf("%d rounds, %d agents, %d claims, %d repairs, %d failures, %d killed in the middle of a change; "+
		"the rules were whole again after %s on average, %s at most",
		rounds, m.started, m.seen["claims"], m.seen["repairs"], m.seen["fails"], m.interrupted,
		(m.healing / time.Duration(rounds)).Round(time.Microsecond), m.slowest.Round(time.Microsecond))
	if rounds > 50 && (m.interrupted == 0 || m.seen["fails"] == 0 || m.seen["repairs"] == 0) {
		t.Error("hardly anything happened")
	}
}

// model is the world of the agents, and what they should have done in it.
type model struct {
	t       *testing.T
	dir     string
	bug     string
	steady  bool
	bound   time.Duration
	seed    uint64
	random  *rand.Rand
	rules   *os.File
	journal *os.File
	live    []*process
	next    *process // started, but not begun
	started int

	oracle
	healing, slowest time.Duration
}

// process is an agent as seen from outside.
type process struct {
	id      string
	cmd     *exec.Cmd
	begin   io.Closer
	ended   chan struct{}
	stopped bool
	leaving bool // told to end

	mu   sync.Mutex // guards the following
	said string     // the last it said
}

func (p *process) says() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.said
}

func newModel(t *testing.T, bug string, bound time.Duration) *model {
	t.Helper()
	m := &model{t: t, dir: t.TempDir(), bug: bug, bound: bound, seed: rand.Uint64(), oracle: newOracle()}
	m.random = rand.New(rand.NewPCG(m.seed, 0))
	var err error
	if m.rules, err = openRules(m.dir); err != nil {
		t.Fatal(err)
	}
	if m.journal, err = openJournal(m.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, p := range m.live {
			m.kill(p)
		}
		if m.next != nil {
			m.kill(m.next)
		}
		_, _ = m.rules.Close(), m.journal.Close()
	})
	return m
}

// round lets something happen, and returns what is wrong then.
func (m *model) round() error {
	for range 1 + m.random.IntN(4) {
		m.step()
		m.pause()
	}
	for len(m.live) == 0 {
		m.start()
	}
	for _, p := range m.live {
		m.resume(p)
	}
	begin := time.Now()
	if err := m.settle(); err != nil {
		return err
	}
	m.healing += time.Since(begin)
	m.slowest = max(m.slowest, time.Since(begin))
	return nil
}

// step lets one thing happen to one agent.
func (m *model) step() {
	if len(m.live) == 0 {
		m.start()
		return
	}
	p := m.live[m.random.IntN(len(m.live))]
	switch m.random.IntN(6) {
	case 0, 1:
		if len(m.live) < modelAgents {
			m.start()
		}
	case 2:
		m.kill(p)
	case 3:
		p.leaving = true
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
	case 4:
		m.stop(p)
	case 5:
		if _, err := m.rules.WriteAt([]byte("by-a-flusher"), m.random.Int64N(2)*half); err != nil {
			m.t.Fatal(err)
		}
	}
}

// pause waits as long as a claim takes, or not at all.
func (m *model) pause() {
	if m.random.IntN(3) > 0 {
		<-time.After(time.Duration(m.random.IntN(2000)) * time.Microsecond)
	}
}

// start lets the next agent begin.
func (m *model) start() *process {
	m.t.Helper()
	if m.next == nil {
		m.next = m.spawn()
	}
	p := m.next
	_ = p.begin.Close()
	m.live = append(m.live, p)
	m.next = m.spawn()
	return p
}

// spawn starts the process of an agent, which takes longer than anything that it does.
func (m *model) spawn() *process {
	m.t.Helper()
	m.started++
	p := &process{id: fmt.Sprintf("agent%07d", m.started), ended: make(chan struct{})}
	text, err := json.Marshal(agentConfig{Dir: m.dir, ID: p.id, Seed: m.random.Uint64(), Bug: m.bug, Steady: m.steady})
	if err != nil {
		m.t.Fatal(err)
	}
	p.cmd = exec.Command(os.Args[0])
	p.cmd.Env = append(os.Environ(), agentEnv+"="+string(text), "GOMAXPROCS=2")
	p.cmd.Stderr = os.Stderr
	in, err := p.cmd.StdinPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	p.begin = in
	if err := p.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			p.mu.Lock()
			p.said = lines.Text()
			p.mu.Unlock()
		}
		_ = p.cmd.Wait()
	}()
	return p
}

// kill ends an agent, whatever it is at.
func (m *model) kill(p *process) {
	m.note(p, "killed")
	_ = p.cmd.Process.Kill()
	m.reap(p)
}

func (m *model) reap(p *process) {
	<-p.ended
	for i, q := range m.live {
		if p == q {
			m.live = append(m.live[:i:i], m.live[i+1:]...)
		}
	}
}

func (m *model) stop(p *process) {
	p.stopped = true
	_ = p.cmd.Process.Signal(syscall.SIGSTOP)
}

func (m *model) resume(p *process) {
	if p.stopped {
		_ = p.cmd.Process.Signal(syscall.SIGCONT)
		p.stopped = false
	}
}

func (m *model) note(p *process, what string) {
	if _, err := fmt.Fprintln(m.journal, p.id, what); err != nil {
		m.t.Fatal(err)
	}
}

// settle waits until all is as it should be.
func (m *model) settle() error {
	tick := time.NewTicker(time.Millisecond / 2)
	defer tick.Stop()
	for deadline := time.Now().Add(m.bound); ; <-tick.C {
		for _, p := range m.live {
			select {
			case <-p.ended: // by its own hand
				m.reap(p)
			default:
			}
		}
		for len(m.live) == 0 {
			m.start()
		}
		if err := m.read(m.journal); err != nil {
			return err
		}
		unsettled := m.unsettled()
		if unsettled == nil {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not settled after %s: %w", m.bound, unsettled)
		}
	}
	for _, p := range m.live { // what has resigned was alive until here
		if p.leaving {
			m.kill(p)
		}
	}
	return nil
}

// unsettled returns what is not as it should be.
func (m *model) unsettled() error {
	owner, newest := "", 0
	for _, p := range m.live {
		if p.leaving {
			if p.says() != "resigned" {
				return fmt.Errorf("%s has been told to end, and says %q", p.id, p.says())
			}
			continue
		}
		n := m.claimed[p.id]
		if n == 0 {
			return fmt.Errorf("%s has not claimed, and says %q", p.id, p.says())
		}
		if n > newest {
			owner, newest = p.id, n
		}
	}
	for _, p := range m.live {
		want := map[bool]string{true: "owns", false: "stands by"}[p.id == owner]
		if !p.leaving && p.says() != want {
			return fmt.Errorf("%s says %q, want %q", p.id, p.says(), want)
		}
	}
	if owner == "" {
		return nil
	}
	found, err := readRules(m.rules)
	if err == nil && found != owner {
		err = fmt.Errorf("the rules are of %q, want %q", found, owner)
	}
	return err
}

// tail returns the end of the journal.
func (m *model) tail() string {
	text, err := io.ReadAll(io.NewSectionReader(m.journal, max(0, m.offset-1000), 1000))
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// oracle reads the journal and knows what may not be in it.
type oracle struct {
	offset      int64
	lines       int
	changing    string          // who has begun a change and not ended it
	claiming    bool            // that change is of a claim
	claimed     map[string]int  // the line of the journal where its claim was made
	killed      map[string]bool // or about to be
	resigned    map[string]bool // or about to
	seen        map[string]int  // lines of a kind
	interrupted int
}

func newOracle() oracle {
	return oracle{
		claimed: map[string]int{}, killed: map[string]bool{}, resigned: map[string]bool{}, seen: map[string]int{},
	}
}

// read reads on in the journal.
func (o *oracle) read(journal *os.File) error {
	text, err := io.ReadAll(io.NewSectionReader(journal, o.offset, 1<<20))
	if err != nil {
		return err
	}
	for line := range bytes.Lines(text) {
		if !bytes.HasSuffix(line, []byte("\n")) {
			break
		}
		o.offset += int64(len(line))
		o.lines++
		id, what, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		if err := o.take(id, what); err != nil {
			return fmt.Errorf("line %d of the journal, %s %s: %w", o.lines, id, what, err)
		}
	}
	return nil
}

// take takes one line.
func (o *oracle) take(id, what string) error {
	o.seen[what]++
	switch what {
	case "claims", "repairs":
		if o.changing != "" {
			if !o.killed[o.changing] {
				return fmt.Errorf("%s is in the middle of a change", o.changing)
			}
			o.interrupted++
		}
		o.changing, o.claiming = id, what == "claims"
		if o.claiming && o.claimed[id] > 0 {
			return errors.New("it has claimed before")
		}
		if o.claiming {
			return nil
		}
		for other, n := range o.claimed {
			if n > o.claimed[id] && !o.killed[other] && !o.resigned[other] {
				return fmt.Errorf("%s lives and has claimed since", other)
			}
		}
	case "done", "fails":
		if o.changing != id {
			return fmt.Errorf("%q is at a change", o.changing)
		}
		if o.claiming && what == "done" {
			o.claimed[id] = o.lines
		}
		o.changing = ""
	case "killed":
		o.killed[id] = true
	case "resigns":
		o.resigned[id] = true
	default:
		return errors.New("not a line of the journal")
	}
	return nil
}
