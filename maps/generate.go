// SPDX-License-Identifier: Apache-2.0

package maps

// The C types and map declarations of ../bpf/include are the only ones; this
// makes Go's side of them. BPF_CFLAGS has the compiler's header directories.
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -type addr -type frontend_key -type frontend_kind -type frontend -type frontend_flag -type slot_range -type backend -type backend_flag -type sock_flow -type local_port_key -type affinity_key -type affinity_value -type addr_info -type addr_flag -type source_range_key -type client_key -type client_addr -type flow_key -type flow_key_kind -type flow -type flow_flag -type flow_said -type note_age -type fragment_key -type fragment -type device -type device_flag -type service_name -type meta_value -type problem -type problem_kind -type reason abi ../bpf/abi.c -- -I../bpf/include -O2 -Wall -Werror $BPF_CFLAGS
