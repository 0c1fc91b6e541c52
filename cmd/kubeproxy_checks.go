// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/validation"
	logsapi "k8s.io/component-base/logs/api/v1"

	"shunt/lb"
)

// The checks of KubeProxyConfiguration's fields. Their bounds are those in the comments of the
// API's types. An empty value means that the field is not set, and is valid. A value of
// another type than the check expects is a mistake in the table fields, and returns an error.

func checkNotNegative(v any) error {
	var d time.Duration
	switch v := v.(type) {
	case metav1.Duration:
		d = v.Duration
	case *metav1.Duration:
		if v != nil {
			d = v.Duration
		}
	case logsapi.TimeOrMetaDuration:
		d = v.Duration.Duration
	default:
		n, err := number(v)
		if err == nil && n < 0 {
			err = fmt.Errorf("%d is negative", n)
		}
		return err
	}
	if d < 0 {
		return fmt.Errorf("%v is negative", d)
	}
	return nil
}

// number returns the value of an int32 or *int32; nil is 0.
func number(v any) (int32, error) {
	switch v := v.(type) {
	case int32:
		return v, nil
	case *int32:
		if v == nil {
			return 0, nil
		}
		return *v, nil
	}
	return 0, fmt.Errorf("a %T is no number", v)
}

func between(low, high int32) func(any) error {
	return func(v any) error {
		n, err := number(v)
		if err == nil && (n < low || n > high) {
			err = fmt.Errorf("%d: give %d to %d", n, low, high)
		}
		return err
	}
}

func oneOf(words ...string) func(any) error {
	return func(v any) error {
		if s := fmt.Sprint(v); s != "" && !slices.Contains(words, s) {
			return fmt.Errorf("%q: there is %s", s, strings.Join(words, ", "))
		}
		return nil
	}
}

// text checks a string value. It calls check only for a string that is not empty.
func text(v any, check func(string) error) error {
	s, ok := v.(string)
	switch {
	case !ok:
		return fmt.Errorf("a %T is no text", v)
	case s == "":
		return nil
	}
	return check(s)
}

func checkContentType(v any) error {
	return oneOf(runtime.ContentTypeProtobuf, runtime.ContentTypeJSON)(v)
}

func checkContentTypes(v any) error {
	return text(v, func(s string) error {
		for one := range strings.SplitSeq(s, ",") {
			one = strings.TrimSpace(one)
			if err := checkContentType(one); err != nil {
				return err
			}
			if one == "" {
				return fmt.Errorf("%q: an item of the list is empty", s)
			}
		}
		return nil
	})
}

func checkVModule(v any) error {
	items, ok := v.(logsapi.VModuleConfiguration)
	if !ok {
		return fmt.Errorf("a %T is no list of patterns", v)
	}
	for _, item := range items {
		if item.FilePattern == "" || strings.ContainsAny(item.FilePattern, ",=") {
			return fmt.Errorf("%q is no pattern of file names: it may not be empty nor hold a comma or an equals sign", item.FilePattern)
		}
	}
	return nil
}

func checkNodeName(v any) error {
	return text(v, func(s string) error {
		if wrong := validation.IsDNS1123Subdomain(nodeNameOf(s)); len(wrong) > 0 {
			return fmt.Errorf("%q can't be the name of a Node: %s", s, strings.Join(wrong, "; "))
		}
		return nil
	})
}

// nodeNameOf converts a host's name to a Node's name, as the kubelet does.
func nodeNameOf(host string) string { return strings.ToLower(strings.TrimSpace(host)) }

func checkIP(v any) error {
	return text(v, func(s string) error {
		if _, err := netip.ParseAddr(s); err != nil {
			return fmt.Errorf("%q is no IP address", s)
		}
		return nil
	})
}

func checkBindAddress(v any) error {
	return text(v, func(s string) error {
		_, err := bindAddress(s, 1)
		return err
	})
}

var minorVersion = regexp.MustCompile(`^\d+\.\d+$`)

func checkMinorVersion(v any) error {
	return text(v, func(s string) error {
		if !minorVersion.MatchString(s) {
			return fmt.Errorf("%q is no version like 1.36", s)
		}
		return nil
	})
}

func checkCIDRs(v any) error {
	list, ok := v.([]string)
	if !ok {
		return fmt.Errorf("a %T is no list", v)
	}
	for _, s := range list {
		if _, err := netip.ParsePrefix(s); err != nil {
			return fmt.Errorf("%q is no CIDR", s)
		}
	}
	return nil
}

// mostClusterCIDRs is CONFIG_CLUSTER_CIDRS of bpf/include/config.h. kube-proxy accepts one
// CIDR of each family; there are clusters with more.
const mostClusterCIDRs = 4

func checkClusterCIDR(v any) error {
	return text(v, func(s string) error {
		_, err := parseClusterCIDRs(s)
		return err
	})
}

// parseClusterCIDRs parses comma-separated CIDRs of any family; none for an empty text.
func parseClusterCIDRs(list string) (cidrs []netip.Prefix, err error) {
	if list == "" {
		return nil, nil
	}
	for one := range strings.SplitSeq(list, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(one))
		if err != nil || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%q is no CIDR", one)
		}
		cidrs = append(cidrs, p.Masked())
	}
	if len(cidrs) > mostClusterCIDRs {
		return nil, fmt.Errorf("%q: give %d CIDRs at most", list, mostClusterCIDRs)
	}
	return cidrs, nil
}

func checkNodePortAddresses(v any) error {
	list, ok := v.([]string)
	if !ok {
		return fmt.Errorf("a %T is no list", v)
	}
	_, err := lb.ParseNodePortAddresses(list)
	return err
}

func checkPortRange(v any) error {
	return text(v, func(s string) error {
		_, err := utilnet.ParsePortRange(s)
		return err
	})
}
