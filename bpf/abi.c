//go:build ignore

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* abi.c: the maps without a program. Package maps is generated from it. */
#include "maps.h"

/* Types that no map names must be used here to get into the BTF, and into Go. The variables
 * themselves are never loaded. */
enum reason abi_reason;
enum frontend_kind abi_frontend_kind;
enum frontend_flag abi_frontend_flag;
enum backend_flag abi_backend_flag;
enum addr_flag abi_addr_flag;
enum device_flag abi_device_flag;
enum flow_key_kind abi_flow_key_kind;
enum flow_flag abi_flow_flag;
enum flow_said abi_flow_said;
enum note_age abi_note_age;
enum problem_kind abi_problem_kind;
__u32 abi_version = SHUNT_ABI;
