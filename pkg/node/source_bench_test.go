package node_test

import (
	"net/netip"
	"testing"

	"github.com/podrole/podrole/internal/nodebox"
)

func BenchmarkLocate(b *testing.B) {
	for name, network := range map[string]nodebox.PodNetwork{
		"own-interface": nodebox.Routed,
		"bridge":        nodebox.Bridge,
	} {
		box := nodebox.ForTest(b, nodebox.Config{Pods: network})
		locator := newLocator(b, box)
		// A pod's neighbour and forwarding entries are there once it has connected.
		pod := addPod(b, box, "web")
		server := newSourceServer(b, box, locator)
		for _, addr := range podAddresses(pod) {
			server.connect(b, pod, addr, "pod")
			family := "-ipv4"
			if addr.Is6() {
				family = "-ipv6"
			}
			b.Run(name+family, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := locator.Locate(b.Context(), addr, netip.Addr{}); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.Run(name+family+"-parallel", func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := locator.Locate(b.Context(), addr, netip.Addr{}); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}
