/* config.h: constants that the loader sets before the verifier sees a program,
 * which then drops the branches that can't be taken. */
#pragma once

#include <linux/types.h>

/* The cookie of the node's network namespace: the one that the daemon runs in,
 * which need not be the machine's first. 0: the kernel does not tell user space
 * (before 5.14), and it is taken to be the first. */
const volatile __u64 config_netns_cookie;

/* bpf_set_retval exists (Linux 5.18): a refusal can say ECONNREFUSED. Without
 * it the kernel says EPERM. */
const volatile __u8 config_has_set_retval;
