// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"strings"
	"sync/atomic"
	"time"
)

// ProblemKind is why a Service is not served as its object asks (enum problem_kind).
type ProblemKind uint8

// The kinds of problem.
const (
	// Conflict: another Service has the frontend.
	Conflict = ProblemKind(abiProblemKindPROBLEM_KIND_CONFLICT)
	// Cut: the Service asks for more frontends than one Service may have.
	Cut = ProblemKind(abiProblemKindPROBLEM_KIND_CUT)
	// NoRoom: a map is full.
	NoRoom = ProblemKind(abiProblemKindPROBLEM_KIND_NO_ROOM)
	// Failed: a write to a map failed for another reason.
	Failed = ProblemKind(abiProblemKindPROBLEM_KIND_FAILED)
	// Refused: the frontend is one that is never programmed.
	Refused = ProblemKind(abiProblemKindPROBLEM_KIND_REFUSED)
)

// ProblemKinds lists every kind.
func ProblemKinds() []ProblemKind { return []ProblemKind{Conflict, Cut, NoRoom, Failed, Refused} }

// String returns the kind as metrics' labels and the command line spell it.
func (k ProblemKind) String() string {
	switch k {
	case Conflict:
		return "conflict"
	case Cut:
		return "cut"
	case NoRoom:
		return "no_room"
	case Failed:
		return "failed"
	case Refused:
		return "refused"
	}
	return fmt.Sprintf("problem_kind_%d", uint8(k))
}

// Problem is an element of map problems: why a Service is not served as its object asks.
type Problem struct {
	// Service is the service port of one family. Port, Protocol and Family are zero if the
	// problem is not about one port.
	Service Name
	Kind    ProblemKind
	// Frontend is zero if the problem is not about one frontend.
	Frontend FrontendKey
	// OwnerNamespace and Owner name the Service that has the frontend (Conflict only).
	OwnerNamespace, Owner string
	// Text describes the problem, and the remedy if there is one.
	Text string
	// Since is when the problem was first found, Attempts how often it was found.
	Since    time.Time
	Attempts uint32
	// More counts this Service's problems that are not in the map.
	More uint32
}

// ProblemRoom returns the size of map problems, in elements.
func (k *Kernel) ProblemRoom() int { return len(k.problems) }

// SetProblems replaces the contents of map problems by the first elements of the list, as many
// as fit, and writes total to map meta. It must be called from one goroutine.
func (k *Kernel) SetProblems(list []Problem, total int) {
	version := &k.meta[0].ProblemsVersion
	writing := (atomic.LoadUint32(version) + 1) | 1 // odd, even if a daemon died during a write
	atomic.StoreUint32(version, writing)
	for i := range k.problems {
		if i < len(list) {
			k.problems[i] = list[i].record()
		} else {
			k.problems[i].Kind = 0
		}
	}
	atomic.StoreUint32(&k.meta[0].Problems, uint32(total))
	atomic.StoreUint32(version, writing+1)
}

// problemReads is the largest number of attempts of Problems to read the map while it changes.
const problemReads = 100

// Problems returns the contents of map problems, and the total number of problems. It works
// without a daemon and while one writes.
func (k *Kernel) Problems() (list []Problem, total int) {
	version := &k.meta[0].ProblemsVersion
	for range problemReads {
		before := atomic.LoadUint32(version)
		list = list[:0]
		for i := range k.problems {
			if k.problems[i].Kind != 0 {
				list = append(list, k.problems[i].problem())
			}
		}
		total = int(atomic.LoadUint32(&k.meta[0].Problems))
		if before%2 == 0 && atomic.LoadUint32(version) == before {
			break
		}
		time.Sleep(100 * time.Microsecond) // a dead writer leaves an odd version
	}
	return list, total
}

func (p *Problem) record() abiProblem {
	r := abiProblem{
		Service: cutName(p.Service), Owner: cutName(Name{Namespace: p.OwnerNamespace, Name: p.Owner}),
		Frontend: p.Frontend, Kind: uint8(p.Kind), Attempts: p.Attempts, More: p.More, Since: p.Since.UnixNano(),
	}
	copy(r.Text[:], CutText(p.Text, len(r.Text)))
	return r
}

func (r *abiProblem) problem() Problem {
	owner := r.Owner.name()
	return Problem{
		Service: r.Service.name(), OwnerNamespace: owner.Namespace, Owner: owner.Name,
		Kind: ProblemKind(r.Kind), Frontend: r.Frontend, Attempts: r.Attempts, More: r.More,
		Since: time.Unix(0, r.Since).UTC(), Text: strings.TrimRight(string(r.Text[:]), "\x00"),
	}
}

// cutName returns the record of a name that is only displayed. Unlike newServiceName it cuts
// texts that are too long.
func cutName(n Name) abiServiceName {
	const most = len(abiServiceName{}.Name)
	v, _ := newServiceName(Name{Namespace: CutText(n.Namespace, most-1), Name: CutText(n.Name, most-1), Port: CutText(n.Port, most-1),
		Protocol: n.Protocol, Family: n.Family}) // the error is about length only
	return v
}

// CutText cuts a text to at most so many bytes; a cut text ends with "…".
func CutText(s string, most int) string {
	const mark = "…"
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most-len(mark)], "") + mark
}
