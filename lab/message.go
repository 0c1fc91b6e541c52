// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
)

// Error is a failure inside a pod. errors.Is finds its errno: ECONNREFUSED, EHOSTUNREACH
// and so on as the system call returned it, and ETIMEDOUT after the caller's timeout.
type Error struct {
	// Op is the system call, or the other operation that failed.
	Op string
	// Errno is 0 if no system call failed.
	Errno syscall.Errno
	// Detail is further text, mostly if there is no errno.
	Detail string
}

func (e *Error) Error() string {
	switch {
	case e.Errno == 0:
		return e.Op + ": " + e.Detail
	case e.Detail != "":
		return fmt.Sprintf("%s %s: %v", e.Op, e.Detail, e.Errno)
	}
	return fmt.Sprintf("%s: %v", e.Op, e.Errno)
}

// Unwrap returns the errno, nil if it is 0.
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// failure makes an Error from the error of a system call. It returns nil for nil, and an
// Error unchanged.
func failure(op string, err error) *Error {
	if err == nil {
		return nil
	}
	if e := (*Error)(nil); errors.As(err, &e) {
		return e
	}
	if errno := syscall.Errno(0); errors.As(err, &errno) {
		return &Error{Op: op, Errno: errno}
	}
	return &Error{Op: op, Detail: err.Error()}
}

// request is one line to an agent. Several requests can be in flight. A request with Cancel
// ends the earlier request with the same ID early; the earlier request is still answered.
type request struct {
	ID     uint64          `json:"id"`
	Op     string          `json:"op,omitempty"`
	Args   json.RawMessage `json:"args,omitempty"`
	Cancel bool            `json:"cancel,omitempty"`
}

// response is one line from an agent.
type response struct {
	ID     uint64          `json:"id"`
	Result json.RawMessage `json:"result,omitempty"`
	Err    *Error          `json:"err,omitempty"`
}
