// A runtime of one call: the reference library runs the plugins of a network, and
// reads what they say.
//
//	libcni ADD|CHECK|DEL|VALIDATE CONFLIST CONTAINER NETNS IFNAME [CAPABILITIES]
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		known, ok := err.(*types.Error)
		if !ok {
			known = &types.Error{Code: 999, Msg: err.Error()}
		}
		known.Print()
		os.Exit(1)
	}
}

func run(args []string) error {
	list, err := libcni.ConfListFromFile(args[1])
	if err != nil {
		return err
	}
	plugins := libcni.NewCNIConfigWithCacheDir([]string{"/opt/cni/bin"}, "/run/libcni", nil)
	runtime := &libcni.RuntimeConf{
		ContainerID: args[2],
		NetNS:       args[3],
		IfName:      args[4],
	}
	if len(args) > 5 {
		if err := json.Unmarshal([]byte(args[5]), &runtime.CapabilityArgs); err != nil {
			return err
		}
	}
	ctx := context.Background()
	switch args[0] {
	case "ADD":
		result, err := plugins.AddNetworkList(ctx, list, runtime)
		if err != nil {
			return err
		}
		return result.Print()
	case "CHECK":
		return plugins.CheckNetworkList(ctx, list, runtime)
	case "DEL":
		return plugins.DelNetworkList(ctx, list, runtime)
	case "VALIDATE":
		_, err := plugins.ValidateNetworkList(ctx, list)
		return err
	}
	return fmt.Errorf("unknown command %s", args[0])
}
