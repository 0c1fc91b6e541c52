// SPDX-License-Identifier: Apache-2.0

package watcher

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"shunt/lb"
)

func serviceDoc(name, ip string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Service\nmetadata: {name: %s}\nspec:\n  clusterIP: %s\n  ports:\n  - port: 80\n", name, ip)
}

func sliceDoc(name, service, address string) string {
	return fmt.Sprintf(`apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %s, labels: {kubernetes.io/service-name: %s}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [%s]}]
`, name, service, address)
}

func docs(list ...string) string { return strings.Join(list, "---\n") }

// looker is a Manifests whose looks the test makes.
type looker struct {
	*Manifests
	*sink
	dir  string
	logs *observer.ObservedLogs
}

func newLooker(t *testing.T, files map[string]string) *looker {
	t.Helper()
	l := &looker{sink: newSink(t), dir: t.TempDir()}
	for name, content := range files {
		write(t, filepath.Join(l.dir, name), content)
	}
	var log *zap.Logger
	log, l.logs = testLog(zap.InfoLevel)
	m, err := NewManifests(ManifestsOptions{Path: l.dir, NodeName: "n1", Sink: l.sink, Log: log})
	must(t, err)
	l.Manifests = m
	return l
}

// after writes files (an empty content removes one), looks until nothing is pending, and
// checks the calls of the sink.
func (l *looker) after(files map[string]string, want ...string) {
	l.t.Helper()
	for name, content := range files {
		if content == "" {
			must(l.t, os.Remove(filepath.Join(l.dir, name)))
		} else {
			write(l.t, filepath.Join(l.dir, name), content)
		}
	}
	eventually(l.t, "a look that is final", func() bool { return !l.look() })
	l.same(l.take(), want)
}

// said checks that the log has each text once.
func (l *looker) said(texts ...string) {
	l.t.Helper()
	for _, text := range texts {
		if n := said(l.logs, text); n != 1 {
			l.t.Errorf("the log says %d times %q:\n%v", n, text, l.logs.All())
		}
	}
}

func TestManifestsFirstLook(t *testing.T) {
	l := newLooker(t, map[string]string{
		"a.yaml":       "# shop\n---\n" + docs(serviceDoc("web", "10.96.0.1"), sliceDoc("web-1", "web", "10.1.0.1")),
		"b.yml":        "apiVersion: v1\nkind: List\nitems:\n- " + strings.ReplaceAll(serviceDoc("db", "10.96.0.2"), "\n", "\n  ") + "\n",
		"c.json":       `{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSliceList","items":[{"metadata":{"name":"db-1","namespace":"default","labels":{"kubernetes.io/service-name":"db"}},"addressType":"IPv4","endpoints":[]}]}`,
		"d.txt":        serviceDoc("text", "10.96.0.3"),
		".hidden.yaml": serviceDoc("hidden", "10.96.0.4"),
		"sub/e.yaml":   serviceDoc("deep", "10.96.0.5"),
		"f.yaml":       docs("", "\n", "null\n"),
	})
	l.after(nil, "set node n1", "set service default/web", "set slice default/web-1", "set service default/db", "set slice default/db-1", "synced")
	if got := l.services[lb.ServiceName{Namespace: "default", Name: "web"}]; len(got.Ports) != 1 || got.ClusterIPs[0] != addrs("10.96.0.1")[0] {
		t.Errorf("web: %+v", got)
	}
	l.after(nil)
	// Writing the same objects again is no change; nor is a comment.
	l.after(map[string]string{"a.yaml": "# my shop\n---\n" + docs(serviceDoc("web", "10.96.0.1"), "# endpoints\n"+sliceDoc("web-1", "web", "10.1.0.1"))})
	l.after(map[string]string{"a.yaml": docs(serviceDoc("web", "10.96.0.1"), sliceDoc("web-1", "web", "10.1.0.9"))}, "set slice default/web-1")
	l.after(map[string]string{"a.yaml": docs(serviceDoc("web", "10.96.0.1"))}, "delete slice default/web-1")
	l.after(map[string]string{"a.yaml": ""}, "delete service default/web")
}

func TestManifestsNode(t *testing.T) {
	node := func(name, zone string) string {
		return "apiVersion: v1\nkind: Node\nmetadata: {name: " + name + ", labels: {topology.kubernetes.io/zone: " + zone + "}}\n"
	}
	l := newLooker(t, map[string]string{"n.yaml": docs(node("n0", "z0"), node("n1", "z1"))})
	l.after(nil, "set node n1", "synced")
	if l.sink.node.Zone != "z1" {
		t.Errorf("node: %+v", l.sink.node)
	}
	l.after(map[string]string{"n.yaml": node("n0", "z0")}, "set node n1")
	if l.sink.node.Zone != "" {
		t.Errorf("without its object the node is known by name alone: %+v", l.sink.node)
	}
	l.NodeName = ""
	l.after(map[string]string{"n.yaml": node("n5", "z5")}, "set node n5")
	l.after(map[string]string{"n.yaml": ""}, "no node")
}

// TestManifestsBadDocuments: the object of a bad document keeps its last good version, and
// the other documents apply.
func TestManifestsBadDocuments(t *testing.T) {
	web, db := serviceDoc("web", "10.96.0.1"), serviceDoc("db", "10.96.0.2")
	l := newLooker(t, map[string]string{"a.yaml": docs(web, db)})
	l.after(nil, "set node n1", "set service default/web", "set service default/db", "synced")

	// The bad document's object is known: it stays, others change and are removed.
	badPort := strings.Replace(web, "port: 80", "port: eighty", 1)
	l.after(map[string]string{"a.yaml": docs(badPort, serviceDoc("db", "10.96.0.3"))}, "set service default/db")
	l.said("Service default/web cannot be used", "spec.ports[0].port: json: cannot unmarshal string")
	l.after(map[string]string{"a.yaml": docs(badPort)}, "delete service default/db")
	l.after(map[string]string{"a.yaml": docs(web, db)}, "set service default/db")

	// The object is not known: none is removed, others change and are added.
	broken := "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n spec: [\n"
	l.after(map[string]string{"a.yaml": docs(serviceDoc("new", "10.96.0.4"), broken)}, "set service default/new")
	l.said("document=2 error=yaml: line 12") // the YAML library's line, which may be one too small
	l.after(map[string]string{"a.yaml": docs(serviceDoc("new", "10.96.0.4"))}, "delete service default/web", "delete service default/db")

	// Documents that are not an object of the API, or have no name or kind.
	for _, bad := range []struct{ doc, say string }{
		{"just text\n", "is not an object of the API"},
		{"- a\n- list\n", "cannot unmarshal array"},
		{"metadata: {name: x}\n", "kind: is missing"},
		{"apiVersion: v1\nkind: Service\nspec: {clusterIP: 10.96.0.9}\n", "metadata.name: is missing"},
		{"apiVersion: v1\nkind: [Service]\n", "head.kind"},
		{"apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: old}\n", `apiVersion: "discovery.k8s.io/v1beta1" is not supported: use discovery.k8s.io/v1`},
		{"apiVersion: v1\nkind: Service\nmetadata: {name: t, creationTimestamp: noon}\nspec: {clusterIP: 10.96.0.9}\n", "metadata.creationTimestamp: parsing time"},
		{"apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: l}, spec: {ports: [{port: 1, targetPort: 1.5}]}}\n", "items[0]: spec.ports[0].targetPort"},
	} {
		l.after(map[string]string{"b.yaml": bad.doc})
		l.said(bad.say)
	}
	l.after(map[string]string{"b.yaml": "a: b: c\n", "c.yaml": web}, "set service default/web")
	l.after(map[string]string{"b.yaml": "a: b: c\n", "c.yaml": ""}, "delete service default/web")
}

func TestManifestsWarnings(t *testing.T) {
	l := newLooker(t, map[string]string{
		"a.yaml": docs(
			"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, externalIPs: [bad], prots: [], ports: [{port: 80, nodeport: 3}]}\n",
			"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n",
			"apiVersion: v1\nkind: Service\nmetadata: {name: unserved}\nspec: {ports: [{port: 80}]}\n",
			"apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: orphan}\naddressType: IPv4\n",
			"apiVersion: v1\nkind: Service\nmetadata: {name: twice, name: thrice}\nspec: {clusterIP: 10.96.0.3}\n",
		),
	})
	l.after(nil, "set node n1", "set service default/web", "set service default/thrice", "synced")
	texts := []string{
		`Service default/web: spec.externalIPs[0]: "bad" is not an IP address: ignored`,
		`Service default/web: spec.prots: unknown field "spec.prots": ignored`,
		`Service default/web: spec.ports[0].nodeport: unknown field "spec.ports[0].nodeport": ignored`,
		"ConfigMap default/c: kind: is not Service, EndpointSlice or Node: ignored",
		"Service default/unserved: spec.clusterIP: is missing: service ignored",
		"EndpointSlice default/orphan: metadata.labels: kubernetes.io/service-name is missing: slice ignored",
		`key "name" already set in map`,
	}
	l.said(texts...)
	// Nothing is logged again when another part of the file changes.
	data, err := os.ReadFile(filepath.Join(l.dir, "a.yaml"))
	must(t, err)
	l.after(map[string]string{"a.yaml": serviceDoc("more", "10.96.0.7") + "---\n" + string(data)}, "set service default/more")
	l.said(texts...)
}

// TestManifestsDuplicates: of objects with one name, that in the first file by name counts.
func TestManifestsDuplicates(t *testing.T) {
	l := newLooker(t, map[string]string{
		"a.yaml": docs(serviceDoc("web", "10.96.0.1"), serviceDoc("web", "10.96.0.9")),
		"b.yaml": serviceDoc("web", "10.96.0.2"),
	})
	ip := func() string {
		return l.services[lb.ServiceName{Namespace: "default", Name: "web"}].ClusterIPs[0].String()
	}
	l.after(nil, "set node n1", "set service default/web", "synced")
	if ip() != "10.96.0.1" || said(l.logs, "Service default/web: is ignored: a.yaml has it already") != 2 {
		t.Errorf("%s; %v", ip(), l.logs.All())
	}
	l.after(map[string]string{"a.yaml": ""}, "set service default/web")
	if ip() != "10.96.0.2" {
		t.Errorf("the other did not take over: %s", ip())
	}
	l.after(map[string]string{"a.yaml": serviceDoc("web", "10.96.0.1")}, "set service default/web")
	// A good one in a later file does not replace it while the first file's is bad.
	l.after(map[string]string{"a.yaml": strings.Replace(serviceDoc("web", "10.96.0.1"), "80", "x", 1)})
	if ip() != "10.96.0.1" {
		t.Errorf("a bad document lost to a later file: %s", ip())
	}
}

// TestManifestsLabels: labels have the same effect as with an API server.
func TestManifestsLabels(t *testing.T) {
	label := func(doc, l string) string {
		return strings.Replace(doc, "metadata: {", "metadata: {labels: {"+l+": x}, ", 1)
	}
	sliceLabel := func(doc, l string) string { return strings.Replace(doc, "labels: {", "labels: {"+l+": x, ", 1) }
	web, ep := serviceDoc("web", "10.96.0.1"), sliceDoc("web-1", "web", "10.1.0.1")
	l := newLooker(t, map[string]string{"s.yaml": web, "e.yaml": ep})
	l.after(nil, "set node n1", "set service default/web", "set slice default/web-1", "synced")
	l.after(map[string]string{"s.yaml": label(web, labelHeadless)})
	l.after(map[string]string{"s.yaml": label(web, labelProxyName)}, "leave service default/web")
	l.after(map[string]string{"e.yaml": sliceLabel(ep, labelProxyName)}, "delete slice default/web-1")
	l.after(map[string]string{"s.yaml": web, "e.yaml": sliceLabel(ep, labelHeadless)}, "set service default/web")
	l.after(map[string]string{"e.yaml": ep}, "set slice default/web-1")
}

// TestManifestsAllBad: where nothing can be used, SetSynced is not called: a typing error
// must not remove what an earlier process programmed.
func TestManifestsAllBad(t *testing.T) {
	l := newLooker(t, map[string]string{"a.yaml": "a: b: c\n"})
	l.after(nil, "set node n1")
	l.said("nothing in the manifests can be used")
	l.after(map[string]string{"a.yaml": serviceDoc("web", "10.96.0.1")}, "set service default/web", "synced")
}

func TestManifestsUnreadable(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "no such file or directory: give a file or a directory that is there",
		"/dev/null":                "is neither a file nor a directory",
	} {
		if _, err := NewManifests(ManifestsOptions{Path: path, Sink: newSink(t)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if _, err := NewManifests(ManifestsOptions{Path: dir}); err == nil {
		t.Error("without a sink: no error")
	}
	// A pipe among the files is never opened: that would block forever.
	l := newLooker(t, map[string]string{"a.yaml": serviceDoc("web", "10.96.0.1")})
	must(t, syscall.Mkfifo(filepath.Join(l.dir, "p.yaml"), 0o600))
	l.after(nil, "set node n1", "set service default/web", "synced")
	l.said("is not a regular file")
	// A file that becomes unreadable keeps its objects.
	path := filepath.Join(l.dir, "a.yaml")
	must(t, os.Remove(path))
	must(t, os.Mkdir(path, 0o755))
	l.after(nil)
	must(t, os.Remove(path))
	l.after(nil, "delete service default/web")
}

// TestManifestsGone: a file that is missing or empty for a moment keeps its objects.
func TestManifestsGone(t *testing.T) {
	l := newLooker(t, map[string]string{"a.yaml": serviceDoc("web", "10.96.0.1")})
	l.after(nil, "set node n1", "set service default/web", "synced")
	path := filepath.Join(l.dir, "a.yaml")
	for _, vanish := range []func() error{
		func() error { return os.Remove(path) },
		func() error { return os.Truncate(path, 0) },
	} {
		must(t, vanish())
		if !l.look() {
			t.Fatal("no second look")
		}
		l.after(map[string]string{"a.yaml": serviceDoc("web", "10.96.0.1")})
	}
	must(t, os.Truncate(path, 0))
	l.after(nil, "delete service default/web")
	must(t, os.RemoveAll(l.dir))
	l.after(nil)
	l.said("the manifests are gone")
	must(t, os.MkdirAll(l.dir, 0o755))
	l.after(map[string]string{"a.yaml": serviceDoc("web", "10.96.0.1")}, "set service default/web")
}

func TestSplitDocuments(t *testing.T) {
	for _, c := range []struct {
		in   string
		want string // "index@line:text" of each, joined by "|"
	}{
		{"a\n", "1@1:a\n"},
		{"---\na\n---\nb\n", "1@1:\na\n|2@3:\nb\n"},
		{"a\n--- # note\nb\n...\n---\nc", "1@1:a\n|2@2: # note\nb\n|3@5:\nc"},
		{"a: |\n  ---\n  text\n---x\n----\n", "1@1:a: |\n  ---\n  text\n---x\n----\n"},
		{"a\r\n---\r\nb\r\n", "1@1:a\r\n|2@2:\r\nb\r\n"},
		{"", "1@1:"},
	} {
		var got []string
		for _, d := range splitDocuments([]byte(c.in)) {
			got = append(got, fmt.Sprintf("%d@%d:%s", d.index, d.line, d.text))
		}
		if strings.Join(got, "|") != c.want {
			t.Errorf("%q:\n got %q\nwant %q", c.in, got, c.want)
		}
	}
}

// TestManifestsSameTick: of two writes of the same size within one tick of the file
// system's clock, the second is not missed.
func TestManifestsSameTick(t *testing.T) {
	l := newLooker(t, map[string]string{"a.yaml": serviceDoc("web", "10.96.0.1")})
	l.after(nil, "set node n1", "set service default/web", "synced")
	path := write(t, filepath.Join(l.dir, "a.yaml"), serviceDoc("web", "10.96.0.2"))
	info, err := os.Stat(path)
	must(t, err)
	f := l.files[path]
	f.is = identify(info) // as if the clock had not moved
	l.after(nil, "set service default/web")

	// Long after, an equal identity means an equal file: it is not read.
	write(t, path, serviceDoc("web", "10.96.0.3"))
	info, err = os.Stat(path)
	must(t, err)
	f.is, f.read = identify(info), info.ModTime().Add(racy+1)
	if _, fresh, err := f.load(path); fresh || err != nil {
		t.Errorf("fresh %v, %v", fresh, err)
	}
}
