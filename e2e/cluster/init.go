package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

// hiddenFolders get an empty file system of the cluster's own: what its programs write there by
// default never reaches the machine, and what the machine has there never reaches them. Of /tmp
// that is sockets, through which a second cluster's S3 server would find the first one's.
var hiddenFolders = []string{"/run", "/tmp", "/var/lib", "/var/log"}

// keptFolders hold too much for memory. They lie in the cluster's folder, under the same names.
var keptFolders = []string{"/var/lib/containerd", "/var/lib/etcd", "/var/lib/kubelet"}

// kernelSettings are the machine-wide ones that a kubelet insists on setting. It gets files
// instead.
var kernelSettings = []string{
	"kernel/keys/root_maxbytes",
	"kernel/keys/root_maxkeys",
	"kernel/panic",
	"kernel/panic_on_oops",
	"vm/overcommit_memory",
	"vm/panic_on_oom",
}

// keepNamespaces is process 1 of the namespaces (mount, network, process) that a test cluster lives
// in. It arranges the mounts, says "ready" and its process number as the machine sees it, and
// reaps the processes whose parents have died.
//
// It ends when its standard input does. The kernel then kills every process of the namespace and
// removes mounts and network devices, so a cluster can't outlive the program that started it,
// however that program ended. With -stay it ends by signal only.
func keepNamespaces(arguments []string) error {
	flags := flag.NewFlagSet("init", flag.ExitOnError)
	folder := flags.String("folder", "", "where the cluster keeps its files")
	visible := flags.String("visible", "", "a folder that is never hidden, with the other one in it")
	stay := flags.Bool("stay", false, "go on after the end of standard input")
	_ = flags.Parse(arguments)

	// Still the machine's /proc, so this is our number there.
	pid, err := os.Readlink("/proc/self")
	if err != nil {
		return err
	}
	if err := arrangeMounts(*folder, *visible); err != nil {
		return err
	}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		for range children {
			reap()
		}
	}()
	fmt.Println("ready", pid)
	if *stay {
		select {}
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func arrangeMounts(folder, visible string) error {
	// Shared among the cluster's own Pods, as a kubelet expects, and with nobody else: unshare
	// has cut the tie to the machine.
	if err := mount("", "/", "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
		return err
	}
	if err := mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	// Open it first: the hidden folders may hide the way to it.
	files, err := os.Open(visible)
	if err != nil {
		return err
	}
	defer files.Close()
	for _, path := range hiddenFolders {
		if err := mount("tmpfs", path, "tmpfs", 0, "mode=1777"); err != nil {
			return err
		}
	}
	if err := bindFolder(fmt.Sprintf("/proc/self/fd/%d", files.Fd()), visible); err != nil {
		return err
	}
	for _, path := range keptFolders {
		source := filepath.Join(folder, filepath.Base(path))
		if err := os.MkdirAll(source, 0o755); err != nil {
			return err
		}
		if err := bindFolder(source, path); err != nil {
			return err
		}
	}
	for _, setting := range kernelSettings {
		path := filepath.Join("/proc/sys", setting)
		value, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		source := filepath.Join("/run/kernel-settings", strings.ReplaceAll(setting, "/", "."))
		if err := os.MkdirAll(filepath.Dir(source), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(source, value, 0o644); err != nil {
			return err
		}
		if err := mount(source, path, "", syscall.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func bindFolder(source, target string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return mount(source, target, "", syscall.MS_BIND|syscall.MS_REC, "")
}

func mount(source, target, kind string, flags uintptr, options string) error {
	if err := syscall.Mount(source, target, kind, flags, options); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// reap collects every child that has ended: one signal may stand for many.
func reap() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if pid <= 0 {
			return
		}
	}
}
