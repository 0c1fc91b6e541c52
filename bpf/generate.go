// SPDX-License-Identifier: Apache-2.0

package bpf

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types sock sock.c -- -Iinclude -O2 -Wall -Werror $BPF_CFLAGS
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -type stale_socket sweep sweep.c -- -Iinclude -O2 -Wall -Werror $BPF_CFLAGS
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -type cidr -type timeouts tc tc.c -- -Iinclude -O2 -Wall -Werror $BPF_CFLAGS
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -type timeouts expire expire.c -- -Iinclude -O2 -Wall -Werror $BPF_CFLAGS
//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types probe probe.c -- -Iinclude -O2 -Wall -Werror $BPF_CFLAGS
