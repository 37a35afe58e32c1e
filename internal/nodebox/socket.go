package nodebox

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// Listen announces on address inside the namespace. The listener and its connections stay in the namespace for good
// and are used from anywhere in the process. The host part of address is empty or an IP address, never a name.
func (n *Namespace) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if err := checkAddress(address); err != nil {
		return nil, err
	}
	var listener net.Listener
	err := n.Do(func() (err error) {
		listener, err = new(net.ListenConfig).Listen(ctx, network, address)
		return err
	})
	return listener, err
}

// ListenPacket is Listen for packet networks such as udp.
func (n *Namespace) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	if err := checkAddress(address); err != nil {
		return nil, err
	}
	var conn net.PacketConn
	err := n.Do(func() (err error) {
		conn, err = new(net.ListenConfig).ListenPacket(ctx, network, address)
		return err
	})
	return conn, err
}

// DialContext connects to address from inside the namespace; it serves as http.Transport.DialContext. The host part
// of address is an IP address, never a name: names would be resolved outside of the namespace.
func (n *Namespace) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if err := checkAddress(address); err != nil {
		return nil, err
	}
	var conn net.Conn
	err := n.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// checkAddress refuses host names. With IP addresses, package net creates the socket on the calling goroutine, which
// Do has brought into the namespace; with names it may do so on others.
func checkAddress(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("parse address %q: %w", address, err)
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("parse address %q: the host must be an IP address: %w", address, err)
	}
	return nil
}
