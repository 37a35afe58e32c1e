package netevents

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/podrole/podrole/internal/nodebox"
)

// at returns a watcher's clock: milliseconds of an afternoon.
func at(ms int) time.Time {
	return time.Unix(1_800_000_000, 0).Add(time.Duration(ms) * time.Millisecond)
}

func TestBursts(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		heard []int // when messages that matter come in, ms
		lossy bool
		want  []int // when it is told
	}{
		"nothing":       {},
		"one":           {heard: []int{0}, want: []int{10}},
		"burst":         {heard: []int{0, 3, 6, 9}, want: []int{19}},
		"two":           {heard: []int{0, 30}, want: []int{10, 40}},
		"without-pause": {heard: everyMillisecond(120), want: []int{50, 101, 129}},
		"lossy": {
			heard: []int{0}, lossy: true,
			want: []int{10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120, 130, 140, 150},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var told []int
			var now int
			w := &watcher{lossy: c.lossy, cfg: Config{Changed: func() { told = append(told, now) }}}
			for now = range 151 {
				if slices.Contains(c.heard, now) {
					w.heard(at(now))
				}
				w.tell(at(now))
			}
			if !slices.Equal(told, c.want) {
				t.Errorf("told at %v, want %v", told, c.want)
			}
			if due := w.due(); !c.lossy && !due.IsZero() {
				t.Errorf("still due at %v", due)
			}
		})
	}
}

func everyMillisecond(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

// message returns a netlink message as the kernel writes it.
func message(kind uint16, payload ...byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, make([]byte, unix.SizeofNlMsghdr-len(b))...)
	b = append(b, payload...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func attribute(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(unix.SizeofNlAttr+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, align(len(b))-len(b))...)
}

func TestMessages(t *testing.T) {
	t.Parallel()
	rule := message(unix.RTM_NEWRULE, slices.Concat(
		[]byte{2, 0, 0, 0}, attribute(1, 'n', 'a', 't', 0), attribute(2|unix.NLA_F_NESTED, 7))...)
	odd := message(unix.RTM_DELRULE, 1, 2, 3)
	for name, c := range map[string]struct {
		datagram []byte
		want     []string
	}{
		"none":      {nil, nil},
		"two":       {slices.Concat(rule, odd), []string{"32: 1=6e617400 2=07", "33:"}},
		"cut-short": {slices.Concat(odd, rule[:len(rule)-1]), []string{"33:", "4:"}},
		"unpadded":  {odd[:len(odd)-1], []string{"33:"}},
		"stub":      {[]byte{1, 2, 3}, []string{"4:"}},
		"too-small": {make([]byte, unix.SizeofNlMsghdr), []string{"4:"}},
	} {
		var got []string
		for m := range messages(c.datagram) {
			text := []string{fmt.Sprintf("%d:", m.Kind)}
			for kind, value := range m.Attributes(4) {
				text = append(text, fmt.Sprintf("%d=%x", kind, value))
			}
			got = append(got, strings.Join(text, " "))
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(nil))
	f.Add(message(unix.RTM_NEWRULE, attribute(1, 'x')...))
	f.Add(append(message(unix.RTM_DELADDR, 1, 2, 3), 1))
	f.Fuzz(func(t *testing.T, datagram []byte) {
		total := 0
		for m := range messages(datagram) {
			total += len(m.Payload)
			attributes := 0
			for _, value := range m.Attributes(4) {
				attributes += len(value)
			}
			if attributes > len(m.Payload) {
				t.Errorf("attributes of %d bytes in a payload of %d", attributes, len(m.Payload))
			}
		}
		if total > len(datagram) {
			t.Errorf("payloads of %d bytes in a datagram of %d", total, len(datagram))
		}
	})
}

// started runs a watch in the box's node with a socket buffer of the given size, and returns its tellings.
func started(t *testing.T, box *nodebox.Box, buffer int, cfg Config) (told <-chan struct{}) {
	t.Helper()
	changed := make(chan struct{}, 1000)
	cfg.Changed = func() { changed <- struct{}{} }
	var file *os.File
	err := box.Node.Do(func() (err error) {
		file, err = open(cfg, buffer)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- watch(ctx, cfg, file) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("watch ended with %v", err)
		}
		file.Close()
	})
	<-changed // at the start
	return changed
}

const patience = 10 * time.Second

func expectTold(t *testing.T, told <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-told:
	case <-time.After(patience):
		t.Fatalf("%s: not told", what)
	}
}

func expectQuiet(t *testing.T, told <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-told:
		t.Errorf("%s: told", what)
	case <-time.After(3 * longest):
	}
}

func rules(t *testing.T, box *nodebox.Box, add bool, priorities ...int) {
	t.Helper()
	err := box.Node.Do(func() error {
		var errs []error
		for _, p := range priorities {
			rule := netlink.NewRule()
			rule.Priority, rule.Table, rule.Family = p, unix.RT_TABLE_MAIN, unix.AF_INET
			if add {
				errs = append(errs, netlink.RuleAdd(rule))
			} else {
				errs = append(errs, netlink.RuleDel(rule))
			}
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{})
	told := started(t, box, bufferSize, Config{
		Protocol: unix.NETLINK_ROUTE,
		Groups:   []int{unix.RTNLGRP_IPV4_RULE},
		Matters:  func(m Message) bool { return m.Kind == unix.RTM_NEWRULE },
	})
	rules(t, box, true, 100, 101, 102)
	expectTold(t, told, "rules added")
	expectQuiet(t, told, "nothing since")
	rules(t, box, false, 100, 101, 102)
	expectQuiet(t, told, "rules deleted, which does not matter here")
}

// What the kernel drops counts, although it was nothing that matters, and the last word is said after it.
func TestWatchLosesNothing(t *testing.T) {
	t.Parallel()
	box := nodebox.ForTest(t, nodebox.Config{})
	reading, hold := make(chan struct{}, 1), make(chan struct{})
	told := started(t, box, 1, Config{ // raised to the kernel's minimum
		Protocol: unix.NETLINK_ROUTE,
		Groups:   []int{unix.RTNLGRP_IPV4_RULE},
		Matters: func(Message) bool {
			select {
			case reading <- struct{}{}:
				<-hold // is slow
			default:
			}
			return false
		},
	})
	rules(t, box, true, 100)
	<-reading
	rules(t, box, true, everyMillisecond(100)...)
	close(hold)
	expectTold(t, told, "messages lost")
}

func TestWatchRefuses(t *testing.T) {
	t.Parallel()
	err := Watch(t.Context(), Config{Protocol: unix.NETLINK_ROUTE, Groups: []int{1 << 20}})
	if !errors.Is(err, unix.EINVAL) {
		t.Errorf("Watch of a group that does not exist = %v", err)
	}
}
