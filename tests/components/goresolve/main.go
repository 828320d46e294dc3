// Resolves names as a static Go program does: without the C library, by what
// resolv.conf, hosts and nsswitch.conf say. Prints a line for each name: the
// name, and what it was resolved to. Exits with 1 when a name has no answer.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

var (
	network = flag.String("network", "ip", "family of addresses: ip, ip4 or ip6")
	srv     = flag.Bool("srv", false, "resolve to targets and ports of services, such as _http._tcp.web")
	ptr     = flag.Bool("ptr", false, "resolve addresses to names")
	cname   = flag.Bool("cname", false, "resolve to canonical names")
	timeout = flag.Duration("timeout", 20*time.Second, "how long a name may take")
)

func main() {
	flag.Parse()
	failed := false
	for _, name := range flag.Args() {
		found, err := resolve(name)
		if err != nil {
			fmt.Fprintln(os.Stderr, "goresolve:", err)
			failed = true
			continue
		}
		fmt.Println(name, strings.Join(found, " "))
	}
	if failed || flag.NArg() == 0 {
		os.Exit(1)
	}
}

func resolve(name string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true}
	switch {
	case *srv:
		_, records, err := resolver.LookupSRV(ctx, "", "", name)
		var found []string
		for _, record := range records {
			found = append(found, fmt.Sprintf("%s:%d", record.Target, record.Port))
		}
		return found, err
	case *ptr:
		return resolver.LookupAddr(ctx, name)
	case *cname:
		found, err := resolver.LookupCNAME(ctx, name)
		return []string{found}, err
	case *network == "ip":
		return resolver.LookupHost(ctx, name)
	default:
		addresses, err := resolver.LookupNetIP(ctx, *network, name)
		var found []string
		for _, address := range addresses {
			found = append(found, address.Unmap().String())
		}
		return found, err
	}
}
