// SPDX-License-Identifier: Apache-2.0

package cmd

import (
	"encoding/json"
	"fmt"
	stdmaps "maps"
	"os"
	"reflect"
	"strconv"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubeproxy "k8s.io/kube-proxy/config/v1alpha1"
	"sigs.k8s.io/yaml"
)

// settings is a KubeProxyConfiguration: the fields of a file, overridden by the flags that
// were given. kube-proxy, unlike shunt, ignores most flags if there is a file.
type settings struct {
	conf kubeproxy.KubeProxyConfiguration
	file string
	// said is the source of each field that is set, by the field's path: the path itself
	// for the file, or the flag with its dashes.
	said map[string]string
	// overruled are the fields of the file that a flag overrides.
	overruled []string
}

// note is a part of the configuration that is logged once.
type note struct {
	why   string
	names []string
}

// loadSettings reads the file, if there is one, and the flags that were given. Its error
// names the field or flag of each malformed value.
func loadSettings(file string, flags *pflag.FlagSet) (*settings, error) {
	s := &settings{file: file, said: map[string]string{}}
	if file != "" {
		conf, set, err := readKubeProxyConfig(file)
		if err != nil {
			return nil, usageError{err}
		}
		s.conf = conf
		for path := range set {
			s.said[path] = path
		}
	}
	var errs []error
	for _, field := range fields {
		if f := flags.Lookup(field.flag); f != nil && f.Changed {
			errs = append(errs, s.overlay(field.path, f))
		}
	}
	for _, field := range fields {
		if field.check == nil {
			continue
		}
		if err := field.check(fieldAt(&s.conf, field.path).Interface()); err != nil {
			errs = append(errs, named(s.who(field.path), err))
		}
	}
	if err := oneError(append(errs, s.checkDetectLocal())); err != nil {
		return nil, usageError{err}
	}
	return s, nil
}

// who returns the name of the field or flag that sets a field, for errors.
func (s *settings) who(path string) string {
	name, ok := s.said[path]
	switch {
	case !ok || name == path:
		return fmt.Sprintf("--config %s: %s", s.file, path)
	default:
		return name
	}
}

// checkDetectLocal returns an error if detectLocalMode is BridgeInterface or
// InterfaceNamePrefix and the name that this mode needs is not set.
func (s *settings) checkDetectLocal() error {
	mode, with := s.conf.DetectLocalMode, s.conf.DetectLocal
	switch {
	case mode == "BridgeInterface" && with.BridgeInterface == "":
		return named(s.who("detectLocalMode"),
			fmt.Errorf("%q needs detectLocal.bridgeInterface or --pod-bridge-interface", mode))
	case mode == "InterfaceNamePrefix" && with.InterfaceNamePrefix == "":
		return named(s.who("detectLocalMode"),
			fmt.Errorf("%q needs detectLocal.interfaceNamePrefix or --pod-interface-name-prefix", mode))
	}
	return nil
}

// overlay sets a field from a flag that was given.
func (s *settings) overlay(path string, f *pflag.Flag) error {
	raw, err := flagJSON(f)
	if err != nil {
		return named("--"+f.Name, err)
	}
	if _, ok := s.said[path]; ok {
		s.overruled = append(s.overruled, path)
	}
	delete(s.said, path)
	v := fieldAt(&s.conf, path)
	v.SetZero()
	d := decoder{set: map[string]bool{}}
	d.decode("--"+f.Name, raw, v)
	if !saysNothing(raw) || len(d.errs) > 0 {
		s.said[path] = "--" + f.Name
	}
	return oneError(d.errs)
}

// flagJSON returns a flag's value in the form of a configuration file.
func flagJSON(f *pflag.Flag) (json.RawMessage, error) {
	text := f.Value.String()
	switch f.Value.Type() {
	case "bool", "int", "int32", "float32":
		return json.RawMessage(text), nil
	case "stringSlice":
		list, ok := f.Value.(pflag.SliceValue)
		if !ok {
			return nil, fmt.Errorf("%q: not a list", text)
		}
		return json.Marshal(list.GetSlice())
	case typeFeatureGates, typeVModule:
		return json.Marshal(f.Value)
	}
	return json.Marshal(text)
}

// withoutEffect returns the fields and flags that are set and have no effect, grouped by
// the reason, in the order of fields.
func (s *settings) withoutEffect() []note {
	var notes []note
	at := map[fate]int{}
	add := func(why fate, name string) {
		i, there := at[why]
		if !there {
			i = len(notes)
			at[why] = i
			notes = append(notes, note{why: string(why)})
		}
		notes[i].names = append(notes[i].names, name)
	}
	for _, field := range fields {
		_, gate := s.conf.FeatureGates[gateExternalIPs]
		if field.path == "featureGates" && gate && len(s.conf.FeatureGates) == 1 {
			continue // this gate has an effect
		}
		if name, ok := s.said[field.path]; ok && field.fate != honoured {
			add(field.fate, name)
		}
	}
	for _, path := range s.overruled {
		add("a flag was given for it, and a flag wins over the file", path)
	}
	return notes
}

// write writes the configuration to a file, with the values that are in effect in c.
func (s *settings) write(file string, c *Config) error {
	conf := s.conf
	conf.TypeMeta = metav1.TypeMeta{APIVersion: kubeProxyAPIVersion, Kind: kubeProxyKind}
	conf.HostnameOverride = c.NodeName
	conf.ClientConnection.Kubeconfig = c.Kubeconfig
	conf.NodePortAddresses = c.NodePortAddresses
	conf.HealthzBindAddress, conf.MetricsBindAddress = c.HealthzBindAddress, c.MetricsBindAddress
	if _, set := conf.FeatureGates[gateExternalIPs]; set || !c.ExternalIPs {
		conf.FeatureGates = stdmaps.Clone(conf.FeatureGates)
		if conf.FeatureGates == nil {
			conf.FeatureGates = map[string]bool{}
		}
		conf.FeatureGates[gateExternalIPs] = c.ExternalIPs
	}
	conf.BindAddressHardFail, conf.EnableProfiling = c.BindAddressHardFail, c.Profiling
	conf.Logging.Format = c.LogFormat
	conf.IPTables.LocalhostNodePorts = &c.LocalhostNodePorts
	out, err := yaml.Marshal(conf)
	if err != nil {
		return fmt.Errorf("--write-config-to %s: %w", file, err)
	}
	if err := os.WriteFile(file, out, 0o644); err != nil {
		return fmt.Errorf("--write-config-to: %w", err)
	}
	return nil
}

// addFieldFlags adds kube-proxy's flags for the fields for which shunt has no flag of its
// own. They are hidden in the help.
func addFieldFlags(f *pflag.FlagSet) {
	var conf kubeproxy.KubeProxyConfiguration
	for _, field := range fields {
		if field.flag == "" || f.Lookup(field.flag) != nil {
			continue
		}
		const usage = "kube-proxy's flag: see docs/COMPATIBILITY.md"
		t := fieldAt(&conf, field.path).Type()
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch {
		case t == reflect.TypeFor[metav1.Duration](), field.path == "logging.flushFrequency":
			f.Duration(field.flag, 0, usage)
		case t.Kind() == reflect.Bool:
			f.Bool(field.flag, false, usage)
		case t.Kind() == reflect.Int32:
			f.Int32(field.flag, 0, usage)
		case t.Kind() == reflect.Float32:
			f.Float32(field.flag, 0, usage)
		case t == reflect.TypeFor[[]string]():
			f.StringSlice(field.flag, nil, usage)
		case t.Kind() == reflect.Map:
			f.Var(featureGates{}, field.flag, usage)
		case t.Kind() == reflect.Slice:
			f.Var(&vmodule{}, field.flag, usage)
		default:
			f.String(field.flag, "", usage)
		}
		_ = f.MarkHidden(field.flag) // it was added just now
	}
}

const (
	typeFeatureGates = "mapStringBool"
	typeVModule      = "pattern=N,..."
)

// featureGates is the value of a flag with NAME=true|false pairs.
type featureGates map[string]bool

func (g featureGates) String() string { return "" }
func (g featureGates) Type() string   { return typeFeatureGates }

func (g featureGates) Set(text string) error {
	return pairs(text, func(name, value string) error {
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%s=%s: want true or false", name, value)
		}
		g[name] = on
		return nil
	})
}

// vmodule is the value of a flag with PATTERN=N pairs, in the form of the file's list.
type vmodule []vmoduleItem

type vmoduleItem struct {
	FilePattern string `json:"filePattern"`
	Verbosity   uint32 `json:"verbosity"`
}

func (m *vmodule) String() string { return "" }
func (m *vmodule) Type() string   { return typeVModule }

func (m *vmodule) Set(text string) error {
	return pairs(text, func(pattern, value string) error {
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil {
			return fmt.Errorf("%s=%s: want a whole number", pattern, value)
		}
		*m = append(*m, vmoduleItem{pattern, uint32(n)})
		return nil
	})
}
