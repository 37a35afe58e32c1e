package identity

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/podrole/podrole/pkg/identity/cni"
	"github.com/podrole/podrole/pkg/node"
)

type opKind int

const (
	opCreate opKind = iota
	opBind
	opMirror
	opAnnotatePod
	opDelete
	opForceDelete
	opFinalize
	opAccount
	opNamespace
	opAddSandbox
	opAddForeign
	opRemoveForeign
	opWrite
	opStart
	opRestartContainers
	opReport
	opEnd
	opTearDown
	opCrash
	opAbandon
	opReboot
	opRestartAgent
	opLook
	opArrive
	opRelist
	opCoalesce
	opNotice
	opWork
	opDrain
	opAsk
	opSpoof
	opStranger
	opSettle
)

// weights says how often each op comes, relative to the others.
var weights = map[opKind]int{
	opCreate: 40, opBind: 40, opMirror: 30, opAnnotatePod: 5, opDelete: 30, opForceDelete: 4, opFinalize: 50,
	opAccount: 20, opNamespace: 8,
	opAddSandbox: 80, opAddForeign: 5, opRemoveForeign: 40, opWrite: 80, opStart: 100, opRestartContainers: 15, opReport: 80,
	opEnd: 60, opTearDown: 120, opCrash: 25, opAbandon: 15, opReboot: 1, opRestartAgent: 4,
	opLook: 120, opArrive: 400, opRelist: 20, opCoalesce: 8, opNotice: 250, opWork: 250, opDrain: 100,
	opAsk: 700, opSpoof: 60, opStranger: 10, opSettle: 8,
}

// randomOps returns a schedule.
func randomOps(seed uint64, count int) []op {
	r := rand.New(rand.NewPCG(seed, 0))
	var kinds []opKind
	for kind := opCreate; kind <= opSettle; kind++ {
		for range weights[kind] {
			kinds = append(kinds, kind)
		}
	}
	ops := make([]op, count)
	for i := range ops {
		ops[i] = op{kinds[r.IntN(len(kinds))], r.Uint64()}
	}
	return ops
}

// do is one step.
func (w *world) do(o op) {
	r := o.random()
	switch o.kind {
	case opCreate:
		w.create(r)
	case opBind:
		w.bind(r)
	case opMirror:
		w.mirror(r)
	case opAnnotatePod:
		w.annotatePod(r)
	case opDelete:
		w.deletePod(r)
	case opForceDelete:
		w.finalize(r, true)
	case opFinalize:
		w.finalize(r, false)
	case opAccount:
		w.changeAccount(r)
	case opNamespace:
		w.changeNamespace(r)
	case opAddSandbox:
		w.addSandbox(r)
	case opAddForeign:
		w.addForeign(r)
	case opRemoveForeign:
		w.removeForeign(r)
	case opWrite:
		w.write(r)
	case opStart:
		w.startContainers(r)
	case opRestartContainers:
		w.restartContainers(r)
	case opReport:
		w.report(r)
	case opEnd:
		w.end(r)
	case opTearDown:
		w.tearDown(r)
	case opCrash:
		w.crash(r)
	case opAbandon:
		w.abandon(r)
	case opReboot:
		w.reboot()
	case opRestartAgent:
		w.restartAgent()
	case opLook:
		w.look()
	case opAsk:
		w.connect(r)
	case opSpoof:
		w.spoof(r)
	case opStranger:
		w.strangers(r)
	case opSettle:
		w.settle(r)
	default:
		if w.agent.advance(o.kind, o.arg) {
			w.say("%s", opNames[o.kind])
		}
	}
	if w.agent.idle() {
		w.takeIn()
	}
}

// takeIn notes that podrole has taken in what it saw.
func (w *world) takeIn() {
	w.tookIn = true
	for _, s := range w.sandboxes {
		s.ready = s.ready || s.looked
	}
	w.oracle.heldWithSandbox(w.agent.directory())
}

var opNames = map[opKind]string{
	opArrive: "events arrive", opRelist: "a watch breaks; list again", opCoalesce: "events coalesce",
	opNotice: "handlers are told", opWork: "podrole reconciles", opDrain: "podrole takes in all that arrived",
}

// look is podrole looking at the CNI's files.
func (w *world) look() {
	var current map[string]cni.Sandbox
	if w.results {
		current = w.agent.sandboxes(w.files(), w.netnsExists)
	} else {
		current = w.agent.sandboxes(nil, w.netnsExists)
	}
	w.counts, w.tookIn = current, false
	w.say("podrole looks at the CNI's files")
	for _, s := range w.sandboxes {
		uid := "container-" + s.id
		if s.pod != nil {
			uid = s.pod.uid
		}
		counted := current[uid].ID == s.id
		if counted && !s.counted {
			s.ready = false
		}
		s.counted, s.looked = counted, s.looked || s.file == wholeFile || s.omitted
	}
}

// talks reports whether connections may come out of a sandbox.
func (w *world) talks(s *simSandbox) bool {
	return s.attached && (s.pod == nil || s.pod.running && s.pod.sandbox == s) && w.mayStart(s)
}

func (w *world) connect(r *rand.Rand) {
	s, ok := one(r, w.sandboxes, w.talks)
	if !ok {
		return
	}
	sources := w.sources(s)
	source := sources[r.IntN(len(sources))]
	w.say("connection from %v out of %s of %s", source, s.id, w.nameOf(s))
	w.ask(s, source)
}

// spoof is a pod on the bridge that uses another's address, with or without its MAC address. (Elsewhere it gets no
// answer to its handshake.) Where its own result has not been read, the kernel's word on it says nothing.
func (w *world) spoof(r *rand.Rand) {
	if w.network != bridged {
		return
	}
	attacker, ok := one(r, w.sandboxes, func(s *simSandbox) bool { return w.talks(s) && s.counted && s.ready })
	if !ok {
		return
	}
	victim, ok := one(r, w.sandboxes, func(s *simSandbox) bool { return s.attached && s.slot != attacker.slot })
	if !ok {
		return
	}
	place := w.place(attacker)
	if chance(r, 50) {
		place.MAC = victim.mac
	}
	source := victim.addresses()[r.IntN(2)]
	w.say("%s of %s spoofs %v of %s of %s", attacker.id, w.nameOf(attacker), source, victim.id, w.nameOf(victim))
	w.refused("spoofed by "+w.nameOf(attacker), source, place)
}

// strangers are connections from where no pod is.
func (w *world) strangers(r *rand.Rand) {
	pod := poolAddress(r.IntN(poolSize), chance(r, 50))
	w.say("connections from where no pod is")
	w.refused("the node itself", nodeAddress, node.Place{Interface: "eth0", Index: 2, Local: true})
	w.refused("behind a router", pod, node.Place{Interface: "eth0", Index: 2, Gateway: true})
	w.refused("from nowhere", pod, node.Place{})
}

// settle ends everything that is under way, and looks whether all is as it should be.
func (w *world) settle(r *rand.Rand) {
	w.say("all settles")
	w.rest()
	w.holdsCurrent()
	for _, s := range slices.Clone(w.sandboxes) {
		switch {
		case w.unwanted(s) && (s.pod != nil || s.freed):
			w.finishTearDown(r, s)
		case w.results && !s.omitted && s.attached && s.file != wholeFile:
			w.clock++
			s.written, s.file = w.clock, wholeFile
		}
	}
	for _, s := range slices.Clone(w.sandboxes) {
		if s.freed { // what outlived it may be gone now
			w.finishTearDown(r, s)
		}
	}
	w.rest()
	for _, p := range w.pods {
		p.running = p.running || p.sandbox != nil && p.sandbox.attached && !p.ended
		if p.api != nil && p.bound && !p.elsewhere && !finished(p.api) {
			w.reportPod(p)
		}
	}
	w.rest()
	w.settled()
}

// finishTearDown ends a sandbox. Its file may stay, and its namespace as well if the runtime forgot it.
func (w *world) finishTearDown(r *rand.Rand, s *simSandbox) {
	for !s.freed || s.netns && !(s.stuck && w.outlived(s)) {
		w.tearDownStep(r, s)
	}
}

// outlived reports whether a newer result of the same pod is there, which an older one must not stand in for.
func (w *world) outlived(s *simSandbox) bool {
	return s.pod != nil && slices.ContainsFunc(w.sandboxes, func(next *simSandbox) bool {
		return next.pod == s.pod && next.file == wholeFile && next.written > s.written
	})
}

func (w *world) rest() {
	w.look()
	w.agent.settle()
	w.takeIn()
}

func (o op) String() string { return fmt.Sprintf("{%d %d}", o.kind, o.arg) }
