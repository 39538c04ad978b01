// A runtime of one call: the reference library runs the plugins of a network, and
// reads what they say.
//
//	libcni ADD|CHECK|DEL CONFLIST CONTAINER NETNS IFNAME [CAPABILITIES]
//	libcni VALIDATE|STATUS CONFLIST
//	libcni GC CONFLIST [ATTACHMENTS]
//
// CNI_PATH has the folders of plugins. CAPABILITIES and ATTACHMENTS are JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		known := &types.Error{Code: 999, Msg: err.Error()}
		errors.As(err, &known)
		known.Print()
		os.Exit(1)
	}
}

func run(command, path string, args []string) error {
	list, err := libcni.NetworkConfFromFile(path)
	if err != nil {
		return err
	}
	folders := filepath.SplitList(os.Getenv("CNI_PATH"))
	plugins := libcni.NewCNIConfigWithCacheDir(folders, "/run/libcni", nil)
	ctx := context.Background()
	switch command {
	case "VALIDATE":
		_, err := plugins.ValidateNetworkList(ctx, list)
		return err
	case "STATUS":
		return plugins.GetStatusNetworkList(ctx, list)
	case "GC":
		gc := &libcni.GCArgs{}
		if len(args) > 0 {
			if err := json.Unmarshal([]byte(args[0]), &gc.ValidAttachments); err != nil {
				return err
			}
		}
		return plugins.GCNetworkList(ctx, list, gc)
	}
	runtime := &libcni.RuntimeConf{ContainerID: args[0], NetNS: args[1], IfName: args[2]}
	if len(args) > 3 {
		if err := json.Unmarshal([]byte(args[3]), &runtime.CapabilityArgs); err != nil {
			return err
		}
	}
	switch command {
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
	}
	return fmt.Errorf("unknown command %s", command)
}
