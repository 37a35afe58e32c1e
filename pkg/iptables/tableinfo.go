package iptables

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// tableInfo is how large a table of the legacy backend is and where in it the built-in chains begin and end: struct
// ipt_getinfo and struct ip6t_getinfo of linux/netfilter_ipv4/ip_tables.h and its like for IPv6, which are the same.
// The kernel keeps nothing else that changes with a table's rules, short of the rules.
type tableInfo struct {
	name       [32]byte
	validHooks uint32
	hookEntry  [5]uint32
	underflow  [5]uint32
	numEntries uint32
	size       uint32
}

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO.
const getInfo = 64

// readTableInfo asks through a raw socket of the family. A table that is not there is created.
func readTableInfo(fd int, f family, table string) (tableInfo, error) {
	level := unix.SOL_IP
	if f == ipv6 {
		level = unix.SOL_IPV6
	}
	var info tableInfo
	copy(info.name[:len(info.name)-1], table)
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), getInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return tableInfo{}, errno
	}
	return info, nil
}
