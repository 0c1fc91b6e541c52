// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// interrupts closes all labs of this process on SIGINT and SIGTERM. Its goroutine runs as
// long as there is a lab to close.
var interrupts interruptHandler

type interruptHandler struct {
	mu          sync.Mutex
	labs        map[*Lab]struct{}
	stop        chan struct{}
	interrupted bool
}

func (h *interruptHandler) add(l *Lab) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.interrupted {
		return errors.New("this process was interrupted")
	}
	if len(h.labs) == 0 {
		h.labs = map[*Lab]struct{}{}
		h.stop = make(chan struct{})
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
		go h.wait(signals, h.stop)
	}
	h.labs[l] = struct{}{}
	return nil
}

func (h *interruptHandler) remove(l *Lab) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.labs[l]; !ok {
		return
	}
	delete(h.labs, l)
	if len(h.labs) == 0 && !h.interrupted {
		close(h.stop)
	}
}

func (h *interruptHandler) wait(signals chan os.Signal, stop chan struct{}) {
	defer signal.Stop(signals)
	select {
	case <-stop:
	case sig := <-signals:
		h.mu.Lock()
		h.interrupted = true
		var labs []*Lab
		for l := range h.labs {
			labs = append(labs, l)
		}
		h.mu.Unlock()
		for _, l := range labs {
			if err := l.Close(); err != nil {
				fmt.Fprintf(os.Stderr, "lab %s was not removed completely: %v\n", l.ID(), err)
			}
		}
		// End by the signal, so that the parent sees the same exit status as without a handler.
		signal.Reset(syscall.SIGINT, syscall.SIGTERM)
		_ = syscall.Kill(os.Getpid(), sig.(syscall.Signal))
	}
}
