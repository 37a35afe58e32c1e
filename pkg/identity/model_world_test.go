package identity

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/podrole/podrole/pkg/identity/cni"
	"github.com/podrole/podrole/pkg/node"
)

// network is how a CNI attaches pods.
type network int

const (
	ownInterface     network = iota // a veth pair with a random name each, as ptp and Calico make
	derivedInterface                // the same, named after namespace and name, as Amazon VPC CNI does
	bridged                         // all on one bridge
	sharedInterface                 // all behind one interface of the node, as Cilium does
	networks
)

const (
	bridgeDevice = "cni0"
	sharedDevice = "cilium_host"
	// poolSize is how many addresses pods share. It is small, so that they are used again soon.
	poolSize = 5
)

var (
	nodeAddress     = netip.MustParseAddr("192.168.0.1")
	modelNamespaces = []string{"shop", "bank"}
	modelAccounts   = []string{"app", "job"}
	modelNames      = []string{"web-0", "web-1", "run", "proxy"}
)

// world is the truth: what the API server, the kubelet, the CNI and the kernel of one node hold. Everything that happens
// to it is an op.
type world struct {
	network network
	results bool // the runtime keeps CNI results
	faults  bool // some results stay corrupt, or are never written
	hasty   bool // containers start before podrole has read their CNI result

	clock     int64 // for file times; never the same twice
	versions  int   // every version of every object has its own
	serial    int
	pods      []*simPod
	sandboxes []*simSandbox // in the order they were made
	accounts  map[string]*metav1.PartialObjectMetadata
	spaces    map[string]*metav1.PartialObjectMetadata

	oracle *oracle
	agent  driver
	did    bool     // whether the op at hand did anything
	said   []string // what it did, if traced
	traced bool
	counts map[string]cni.Sandbox // the results that counted at podrole's last look
	tookIn bool                   // it was taken in since
}

// simPod is a pod, from its creation until nothing is left of it.
type simPod struct {
	namespace, name, account string
	uid                      string // as the CNI has it
	apiUIDs                  map[string]bool
	api                      *corev1.Pod // nil while it is not in the API
	bound, elsewhere         bool
	static, hostNetwork, job bool
	running, restarting      bool // its containers
	ended                    bool // its containers, for good
	sandbox                  *simSandbox
}

func (p *simPod) key() string { return p.namespace + "/" + p.name }

// simSandbox is a pod sandbox, or one of somebody else's if pod is nil.
type simSandbox struct {
	id       string
	pod      *simPod
	slot     int // of the address pool
	device   string
	mac      net.HardwareAddr
	attached bool // link and addresses are there
	freed    bool // its addresses may be given to another one
	netns    bool // its path exists
	stuck    bool // the runtime forgot it in the middle of its end
	file     fileState
	omitted  bool // the file is never written, or never whole
	written  int64
	counted  bool // podrole's last look at the files made it the one that counts for its pod
	looked   bool // podrole has looked since its file was written
	ready    bool // and has taken in what it saw
}

type fileState int

const (
	noFile fileState = iota
	corruptFile
	wholeFile
)

func (s *simSandbox) addresses() []netip.Addr {
	return []netip.Addr{poolAddress(s.slot, false), poolAddress(s.slot, true)}
}

func (s *simSandbox) netnsPath() string { return "/run/netns/" + s.id }

func poolAddress(slot int, ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.AddrFrom16([16]byte{0: 0xfd, 15: byte(slot + 1)})
	}
	return netip.AddrFrom4([4]byte{10, 0, 0, byte(slot + 1)})
}

// egressAddress is one that no list names.
func egressAddress(slot int) netip.Addr {
	return netip.AddrFrom4([4]byte{169, 254, 172, byte(slot + 1)})
}

// op is a step. What it is about follows from arg and the state of the world, and from nothing else, so that a schedule
// can be played again, and with some of its steps left out.
type op struct {
	kind opKind
	arg  uint64
}

func (o op) random() *rand.Rand { return rand.New(rand.NewPCG(o.arg, uint64(o.kind))) }

// one returns a random one of those that fit.
func one[T any](r *rand.Rand, from []T, fits func(T) bool) (chosen T, ok bool) {
	n := 0
	for _, x := range from {
		if fits(x) {
			if n++; r.IntN(n) == 0 {
				chosen = x
			}
		}
	}
	return chosen, n > 0
}

func chance(r *rand.Rand, percent int) bool { return r.IntN(100) < percent }

// say notes what an op did.
func (w *world) say(format string, args ...any) {
	w.did = true
	if w.traced {
		w.said = append(w.said, fmt.Sprintf(format, args...))
	}
}

func newWorld(network network, results, faults, hasty bool, o *oracle) *world {
	w := &world{
		network: network, results: results, faults: faults, hasty: hasty, oracle: o,
		accounts: map[string]*metav1.PartialObjectMetadata{},
		spaces:   map[string]*metav1.PartialObjectMetadata{},
	}
	return w
}

// version returns annotations that occur once.
func (w *world) version(of string) map[string]string {
	w.versions++
	w.oracle.happened(of, w.versions)
	return map[string]string{versionKey: strconv.Itoa(w.versions)}
}

const versionKey = "version"

func podHistory(uid string) string              { return "pod " + uid }
func accountHistory(namespace, n string) string { return "account " + namespace + "/" + n }
func namespaceHistory(namespace string) string  { return "namespace " + namespace }

// The API server.

// put makes edit's result the pod in the API. Objects are never changed in place.
func (w *world) put(p *simPod, edit func(*corev1.Pod)) {
	old := p.api
	q := &corev1.Pod{}
	if old != nil {
		*q = *old
	}
	edit(q)
	p.api = q
	if p.elsewhere || !p.bound {
		return
	}
	if finished(q) {
		w.oracle.over(string(q.UID))
	}
	w.agent.emit(podFeed, event{key: p.key(), object: q})
}

func (w *world) create(r *rand.Rand) {
	namespace, name := modelNamespaces[r.IntN(len(modelNamespaces))], modelNames[r.IntN(len(modelNames))]
	taken := slices.ContainsFunc(w.pods, func(p *simPod) bool {
		return p.namespace == namespace && p.name == name && (p.api != nil || p.static)
	})
	if taken {
		return
	}
	w.serial++
	p := &simPod{
		namespace: namespace, name: name, account: modelAccounts[r.IntN(len(modelAccounts))],
		uid: fmt.Sprintf("uid%d", w.serial), apiUIDs: map[string]bool{},
	}
	switch r.IntN(10) {
	case 0:
		p.static, p.bound, p.uid = true, true, fmt.Sprintf("hash%d", w.serial)
	case 1:
		p.hostNetwork = true
	case 2, 3:
		p.job = true
	}
	w.pods = append(w.pods, p)
	w.say("create %s as %s (static %v, host network %v, job %v)", p.key(), p.uid, p.static, p.hostNetwork, p.job)
	if !p.static {
		w.appear(p, p.uid)
	}
}

// appear brings a pod into the API under a UID.
func (w *world) appear(p *simPod, uid string) {
	p.apiUIDs[uid] = true
	w.oracle.exists(uid, p)
	w.put(p, func(q *corev1.Pod) {
		q.Namespace, q.Name, q.UID = p.namespace, p.name, types.UID(uid)
		q.Annotations = w.version(podHistory(uid))
		q.Spec.ServiceAccountName, q.Spec.HostNetwork = p.account, p.hostNetwork
		q.Status.Phase = corev1.PodPending
		if p.static {
			q.Annotations[corev1.MirrorPodAnnotationKey] = p.uid
			q.Spec.NodeName = "node"
		}
	})
}

// mirror is the kubelet that makes a static pod visible in the API, as often as it has to.
func (w *world) mirror(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool { return p.static && p.api == nil && !p.ended })
	if !ok {
		return
	}
	w.serial++
	uid := fmt.Sprintf("mirror%d", w.serial)
	w.say("mirror of %s appears as %s", p.key(), uid)
	w.appear(p, uid)
}

func (w *world) bind(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool { return !p.bound && p.api != nil })
	if !ok {
		return
	}
	p.bound, p.elsewhere = true, chance(r, 10)
	w.say("bind %s to this node: %v", p.uid, !p.elsewhere)
	w.put(p, func(q *corev1.Pod) { q.Spec.NodeName = "node" })
}

func (w *world) annotatePod(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool { return p.api != nil })
	if !ok {
		return
	}
	w.say("annotate %s", p.uid)
	w.put(p, func(q *corev1.Pod) {
		q.Annotations = w.version(podHistory(string(q.UID)))
		if p.static {
			q.Annotations[corev1.MirrorPodAnnotationKey] = p.uid
		}
	})
}

func (w *world) deletePod(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool { return p.api != nil && p.api.DeletionTimestamp == nil })
	if !ok {
		return
	}
	w.say("delete %s", p.uid)
	w.put(p, func(q *corev1.Pod) { q.DeletionTimestamp = new(metav1.Now()) })
}

// drop takes a pod out of the API.
func (w *world) drop(p *simPod) {
	gone := p.api
	w.oracle.over(string(gone.UID))
	p.api = nil
	if p.bound && !p.elsewhere {
		w.agent.emit(podFeed, event{key: p.key(), object: gone, deleted: true})
	}
}

func (w *world) finalize(r *rand.Rand, force bool) {
	p, ok := one(r, w.pods, func(p *simPod) bool {
		if p.api == nil {
			return false
		}
		if force {
			return p.static || p.api.DeletionTimestamp != nil || chance(r, 10)
		}
		return p.api.DeletionTimestamp != nil && (p.ended || p.elsewhere || !p.bound) && p.sandbox == nil
	})
	if !ok {
		return
	}
	w.say("%s is gone from the API (forced: %v)", p.api.UID, force)
	w.drop(p)
	if !p.static || !force {
		p.static = false
		w.sweepPods()
	}
}

func (w *world) changeAccount(r *rand.Rand) {
	namespace, name := modelNamespaces[r.IntN(len(modelNamespaces))], modelAccounts[r.IntN(len(modelAccounts))]
	w.changeObject(w.accounts, accountFeed(namespace), namespace, name, accountHistory(namespace, name), chance(r, 30))
}

func (w *world) changeNamespace(r *rand.Rand) {
	namespace := modelNamespaces[r.IntN(len(modelNamespaces))]
	w.changeObject(w.spaces, namespaceFeed(namespace), "", namespace, namespaceHistory(namespace), chance(r, 20))
}

func (w *world) changeObject(
	objects map[string]*metav1.PartialObjectMetadata, f feedID, namespace, name, history string, remove bool,
) {
	key := name
	if namespace != "" {
		key = namespace + "/" + name
	}
	old := objects[key]
	if remove {
		if old != nil {
			w.say("%s is deleted", history)
			delete(objects, key)
			w.versions++
			w.oracle.deleted(history, w.versions)
			w.agent.emit(f, event{key: key, object: old, deleted: true})
		}
		return
	}
	objects[key] = &metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Object"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: w.version(history)},
	}
	w.say("%s becomes version %d", history, w.versions)
	w.agent.emit(f, event{key: key, object: objects[key]})
}

// present returns what a list of f's objects would be now, in a fixed order.
func (w *world) present(f feedID) []event {
	var events []event
	switch f.kind {
	case podKind:
		for _, p := range w.pods {
			if p.api != nil && p.bound && !p.elsewhere {
				events = append(events, event{key: p.key(), object: p.api})
			}
		}
	case accountKind:
		for _, name := range modelAccounts {
			if a := w.accounts[f.namespace+"/"+name]; a != nil {
				events = append(events, event{key: f.namespace + "/" + name, object: a})
			}
		}
	case namespaceKind:
		if n := w.spaces[f.namespace]; n != nil {
			events = append(events, event{key: f.namespace, object: n})
		}
	}
	return events
}

// The kubelet, the runtime and the CNI.

func (w *world) addSandbox(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool {
		return p.bound && !p.elsewhere && !p.hostNetwork && !p.ended && p.sandbox == nil &&
			(p.static || p.api != nil && p.api.DeletionTimestamp == nil && !finished(p.api))
	})
	if !ok {
		return
	}
	p.sandbox = w.attach(r, p)
}

func (w *world) addForeign(r *rand.Rand) { w.attach(r, nil) }

func (w *world) attach(r *rand.Rand, p *simPod) *simSandbox {
	used := [poolSize]bool{}
	for _, s := range w.sandboxes {
		if !s.freed {
			used[s.slot] = true
		}
	}
	slot, ok := one(r, []int{0, 1, 2, 3, 4}, func(i int) bool { return !used[i] })
	if !ok {
		return nil
	}
	w.serial++
	s := &simSandbox{
		id: fmt.Sprintf("s%d", w.serial), pod: p, slot: slot, device: fmt.Sprintf("veth%d", w.serial),
		mac: net.HardwareAddr{2, 0, 0, 0, byte(w.serial >> 8), byte(w.serial)}, attached: true, netns: true,
		omitted: !w.results || w.faults && chance(r, 15),
	}
	if w.network == derivedInterface && p != nil {
		s.device = "eni-" + p.namespace + "-" + p.name
		for _, other := range w.sandboxes {
			if other.device == s.device {
				other.attached = false // a name is one link's
			}
		}
	}
	w.sandboxes = append(w.sandboxes, s)
	w.say("sandbox %s of %s at %v behind %s (file omitted: %v)", s.id, w.nameOf(s), s.addresses(), s.device, s.omitted)
	return s
}

func (w *world) nameOf(s *simSandbox) string {
	if s.pod == nil {
		return "nobody here"
	}
	return s.pod.uid
}

// write is libcni, which writes into the file, so that there may be half of it.
func (w *world) write(r *rand.Rand) {
	s, ok := one(r, w.sandboxes, func(s *simSandbox) bool { return s.attached && s.file != wholeFile && (!s.omitted || s.file == noFile) })
	if !ok || !w.results {
		return
	}
	w.clock++
	s.written = w.clock
	switch {
	case s.omitted && chance(r, 50): // never
		return
	case s.omitted || s.file == noFile && chance(r, 20):
		s.file = corruptFile
	default:
		s.file = wholeFile
	}
	w.say("file of %s: %d", s.id, s.file)
}

func (w *world) startContainers(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool {
		return p.sandbox != nil && p.sandbox.attached && !p.running && !p.ended && w.mayStart(p.sandbox)
	})
	if !ok {
		return
	}
	w.say("containers of %s start", p.uid)
	p.running, p.restarting = true, false
}

// mayStart reports whether a sandbox's first container may run. The runtime starts it after the CNI call has returned, 0.3 s
// later at the least by what was measured, while podrole reads a file within milliseconds. Where the address is all
// there is to tell pods apart, or the name of an interface is its successor's, everything rests on that.
func (w *world) mayStart(s *simSandbox) bool {
	return s.ready || !w.results || w.hasty && (w.network == ownInterface || w.network == bridged)
}

func (w *world) restartContainers(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool { return p.running })
	if ok {
		w.say("containers of %s end, to be restarted", p.uid)
		p.running, p.restarting = false, true
	}
}

// report is the kubelet's status update, late or not.
func (w *world) report(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool { return p.api != nil && p.bound && !p.elsewhere && !finished(p.api) })
	if ok {
		w.reportPod(p)
	}
}

func (w *world) reportPod(p *simPod) {
	var addresses []corev1.PodIP
	switch {
	case p.hostNetwork:
		addresses = []corev1.PodIP{{IP: nodeAddress.String()}}
	case p.sandbox != nil && p.sandbox.attached:
		for _, a := range p.sandbox.addresses() {
			addresses = append(addresses, corev1.PodIP{IP: a.String()})
		}
	default:
		addresses = p.api.Status.PodIPs // as it was
	}
	state := corev1.ContainerStatus{}
	if !p.running {
		state.State.Terminated = &corev1.ContainerStateTerminated{}
	}
	phase := corev1.PodPending
	switch {
	case p.ended && p.job:
		phase = corev1.PodSucceeded
	case p.running || p.restarting || p.ended:
		phase = corev1.PodRunning
	}
	w.say("status of %s: %s %v running %v", p.uid, phase, addresses, p.running)
	w.put(p, func(q *corev1.Pod) {
		q.Status = corev1.PodStatus{Phase: phase, PodIPs: addresses}
		if len(addresses) > 0 {
			q.Status.PodIP = addresses[0].IP
		}
		if phase != corev1.PodPending {
			q.Status.ContainerStatuses = []corev1.ContainerStatus{state}
		}
	})
}

// end ends containers for good: of a pod that is being deleted, is deleted, or has done its work.
func (w *world) end(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool {
		return p.bound && !p.elsewhere && !p.ended &&
			(p.api == nil && !p.static || p.api != nil && p.api.DeletionTimestamp != nil || p.job && p.running)
	})
	if ok {
		w.say("containers of %s end for good", p.uid)
		p.running, p.restarting, p.ended = false, false, true
	}
}

// tearDown does one of the steps that end a sandbox which is no longer wanted: CNI DEL, which frees the address, then
// file and namespace in either order.
func (w *world) tearDown(r *rand.Rand) {
	s, ok := one(r, w.sandboxes, func(s *simSandbox) bool { return s.pod != nil && w.unwanted(s) && !(s.freed && s.stuck) })
	if ok {
		w.tearDownStep(r, s)
	}
}

func (w *world) removeForeign(r *rand.Rand) {
	s, ok := one(r, w.sandboxes, func(s *simSandbox) bool { return s.pod == nil })
	if ok {
		w.tearDownStep(r, s)
	}
}

func (w *world) unwanted(s *simSandbox) bool {
	return s.pod == nil || s.pod.sandbox != s || s.pod.ended
}

func (w *world) tearDownStep(r *rand.Rand, s *simSandbox) {
	switch {
	case s.attached || !s.freed:
		s.attached, s.freed, s.stuck = false, true, chance(r, 15)
		w.say("%s: address freed (and forgotten: %v)", s.id, s.stuck)
	case s.netns && (s.file == noFile || chance(r, 50)):
		s.netns = false
		w.say("%s: namespace removed", s.id)
	default:
		s.file, s.netns = noFile, s.netns && s.file != noFile
		w.say("%s: file removed", s.id)
	}
	w.sweepSandboxes()
}

// crash ends a pod's sandbox without CNI DEL: the file stays, and the address is not free yet.
func (w *world) crash(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool { return p.sandbox != nil })
	if !ok {
		return
	}
	s := p.sandbox
	p.sandbox, p.running, p.restarting = nil, false, true
	s.attached = false
	if s.netns = chance(r, 30); !s.netns && chance(r, 50) {
		s.freed = true
	}
	w.say("sandbox %s of %s crashes (namespace left: %v)", s.id, p.uid, s.netns)
}

// abandon leaves a sandbox behind that outlives its pod's next one: the containers are gone, all else is there.
func (w *world) abandon(r *rand.Rand) {
	p, ok := one(r, w.pods, func(p *simPod) bool { return p.sandbox != nil })
	if !ok {
		return
	}
	w.say("sandbox %s of %s is given up, not removed", p.sandbox.id, p.uid)
	p.sandbox, p.running, p.restarting = nil, false, true
}

func (w *world) reboot() {
	w.say("reboot")
	for _, s := range w.sandboxes {
		s.attached, s.netns, s.freed = false, false, true
	}
	for _, p := range w.pods {
		p.sandbox, p.restarting = nil, p.running || p.restarting
		p.running = false
	}
	w.restartAgent()
}

func (w *world) restartAgent() {
	w.say("podrole starts anew")
	for _, s := range w.sandboxes {
		s.counted, s.looked, s.ready = false, false, false
	}
	w.tookIn = false
	w.agent.stop() // the last word of the old one is out before the new one begins
	w.oracle.restart()
	w.agent.start(w)
}

// sweepPods forgets pods of which nothing is left.
func (w *world) sweepPods() {
	w.pods = slices.DeleteFunc(w.pods, func(p *simPod) bool {
		return p.api == nil && !p.static && !slices.ContainsFunc(w.sandboxes, func(s *simSandbox) bool { return s.pod == p })
	})
}

func (w *world) sweepSandboxes() {
	w.sandboxes = slices.DeleteFunc(w.sandboxes, func(s *simSandbox) bool {
		gone := s.freed && !s.netns && s.file == noFile
		if gone && s.pod != nil && s.pod.sandbox == s {
			s.pod.sandbox = nil
		}
		return gone
	})
	w.sweepPods()
}

// files returns what the files of the node tell, as the CNI's watcher reads them.
func (w *world) files() (all []cni.Sandbox) {
	for _, s := range w.sandboxes {
		if s.file != wholeFile {
			continue
		}
		c := cni.Sandbox{
			ID: s.id, PodUID: "container-" + s.id, Namespace: "other", Name: s.id, NetNS: s.netnsPath(),
			Addresses: s.addresses(), HostInterface: s.device, MAC: s.mac, Network: "net", Written: unixTime(s.written),
		}
		if s.pod != nil {
			c.PodUID, c.Namespace, c.Name = s.pod.uid, s.pod.namespace, s.pod.name
		}
		all = append(all, c)
	}
	return all
}

func (w *world) netnsExists(path string) bool {
	return slices.ContainsFunc(w.sandboxes, func(s *simSandbox) bool { return s.netns && s.netnsPath() == path })
}

// place is where the kernel finds the address of a connection out of s.
func (w *world) place(s *simSandbox) node.Place {
	switch w.network {
	case bridged:
		return node.Place{Interface: bridgeDevice, Index: 1, Bridge: true, MAC: s.mac, Port: s.device}
	case sharedInterface:
		return node.Place{Interface: sharedDevice, Index: 1, Gateway: true}
	default:
		return node.Place{Interface: s.device, Index: 1}
	}
}
