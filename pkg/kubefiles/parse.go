package kubefiles

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	strictjson "sigs.k8s.io/json"
)

// maxFileSize is the most a file may hold. A pod takes about 1 kB to 10 kB of YAML.
const maxFileSize = 32 << 20

// lineError is what is wrong with a file, and where.
type lineError struct {
	Line int // counted from one; zero: the file as a whole
	Err  error
}

// Error implements error.
func (e *lineError) Error() string {
	if e.Line == 0 {
		return e.Err.Error()
	}
	return fmt.Sprintf("line %d: %v", e.Line, e.Err)
}

// Unwrap returns the cause.
func (e *lineError) Unwrap() error { return e.Err }

func lineErrorf(line int, format string, args ...any) error {
	return &lineError{Line: line, Err: fmt.Errorf(format, args...)}
}

// content is what a file holds.
type content struct {
	objects []declared
	ignored []ignored
	lines   map[id]int // where each of objects begins
}

// ignored is a document of a kind that is not served.
type ignored struct {
	apiVersion, kind string
	line             int
}

// parse reads the documents of a file. The error is a *lineError.
func parse(data []byte) (content, error) {
	c := content{lines: make(map[id]int)}
	if len(data) > maxFileSize {
		return c, lineErrorf(0, "larger than %d MiB; split it", maxFileSize>>20)
	}
	documents := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var document yaml.Node
		err := documents.Decode(&document)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return content{}, syntaxError(data, err)
		}
		if len(document.Content) != 1 {
			continue
		}
		if err := c.add(document.Content[0], typeMeta{}, true); err != nil {
			return content{}, err
		}
	}
	return c, nil
}

// yamlLine is the line in a message of the YAML library.
var yamlLine = regexp.MustCompile(`^yaml: (?:line \d+: )?`)

// syntaxError says what is not YAML, and where. The library names the line where the surrounding block begins, or the
// one before, which may be far off. So this looks for the first line without which the library would not complain like
// that.
func syntaxError(data []byte, complaint error) error {
	var ends []int // of lines
	for i, b := range data {
		if b == '\n' {
			ends = append(ends, i+1)
		}
	}
	ends = append(ends, len(data))
	line := 1 + sort.Search(len(ends)-1, func(i int) bool {
		err := checkSyntax(data[:ends[i]])
		return err != nil && err.Error() == complaint.Error()
	})
	return lineErrorf(line, "not YAML: %s", yamlLine.ReplaceAllString(complaint.Error(), ""))
}

// checkSyntax returns the first error of the YAML library.
func checkSyntax(data []byte) error {
	documents := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var document yaml.Node
		if err := documents.Decode(&document); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// typeMeta is what an object says it is.
type typeMeta struct{ apiVersion, kind string }

// item returns the type of the items of a list that leave it out, as those of a PodList do.
func (t typeMeta) item() typeMeta {
	if t.kind == "List" {
		return typeMeta{}
	}
	return typeMeta{apiVersion: t.apiVersion, kind: strings.TrimSuffix(t.kind, "List")}
}

// add reads the object or, where a list may stand, the list at node. A missing type is taken from implied.
func (c *content) add(node *yaml.Node, implied typeMeta, mayBeList bool) error {
	node = target(node)
	if node.ShortTag() == "!!null" {
		return nil
	}
	t, err := typeOf(node, implied)
	if err != nil {
		return err
	}
	served := map[string]kind{"Pod": kindPod, "ServiceAccount": kindServiceAccount, "Namespace": kindNamespace}
	_, servedList := served[t.item().kind]
	switch {
	case t.apiVersion != "v1":
	case strings.HasSuffix(t.kind, "List") && (t.kind == "List" || servedList):
		if !mayBeList {
			return lineErrorf(node.Line, "a List inside a List")
		}
		return c.addItems(node, t.item())
	case served[t.kind] != "":
		return c.addObject(node, served[t.kind])
	}
	c.ignored = append(c.ignored, ignored{apiVersion: t.apiVersion, kind: t.kind, line: node.Line})
	return nil
}

func typeOf(node *yaml.Node, implied typeMeta) (typeMeta, error) {
	if node.Kind != yaml.MappingNode {
		return typeMeta{}, lineErrorf(node.Line, "not a Kubernetes object, which has apiVersion, kind and metadata")
	}
	t := implied
	for _, field := range []struct {
		name  string
		value *string
	}{{"apiVersion", &t.apiVersion}, {"kind", &t.kind}} {
		if v := child(node, field.name); v != nil {
			if v.Kind != yaml.ScalarNode || v.ShortTag() != "!!str" {
				return typeMeta{}, lineErrorf(v.Line, "%s is not a string", field.name)
			}
			*field.value = v.Value
		}
		if *field.value == "" {
			return typeMeta{}, lineErrorf(node.Line, "an object without %s", field.name)
		}
	}
	return t, nil
}

// addItems reads the items of a list.
func (c *content) addItems(list *yaml.Node, implied typeMeta) error {
	items := child(list, "items")
	switch {
	case items == nil || items.ShortTag() == "!!null":
		return nil
	case items.Kind != yaml.SequenceNode:
		return lineErrorf(items.Line, "items is not a list")
	}
	for _, item := range items.Content {
		if err := c.add(item, implied, false); err != nil {
			return err
		}
	}
	return nil
}

// addObject decodes the object of a kind that is served.
func (c *content) addObject(node *yaml.Node, k kind) error {
	var o object
	switch k {
	case kindPod:
		var pod corev1.Pod
		if err := decode(node, &pod); err != nil {
			return err
		}
		pod.TypeMeta = metav1.TypeMeta{} // as typed clients return it
		o = &pod
	case kindServiceAccount:
		var account corev1.ServiceAccount
		if err := decode(node, &account); err != nil {
			return err
		}
		o = partial(k, account.ObjectMeta)
	case kindNamespace:
		var namespace corev1.Namespace
		if err := decode(node, &namespace); err != nil {
			return err
		}
		o = partial(k, namespace.ObjectMeta)
	}
	d, err := newDeclared(k, o, node.Line)
	if err != nil {
		return &lineError{Line: node.Line, Err: err}
	}
	if line, ok := c.lines[d.id]; ok {
		return lineErrorf(d.line, "%s is declared in line %d already; keep one", d.id, line)
	}
	c.lines[d.id] = d.line
	c.objects = append(c.objects, d)
	return nil
}

// decode fills in target, a pointer to a Kubernetes type, from node. Kubernetes types know JSON only, so JSON is what
// the node becomes, with a note of which line each part came from.
func decode(node *yaml.Node, target any) error {
	w := jsonWriter{}
	if err := w.write(node, 0); err != nil {
		return err
	}
	strict, err := strictjson.UnmarshalStrict(w.out.Bytes(), target)
	if mismatch, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		line := w.lineAt(mismatch.Offset)
		return lineErrorf(line, "%s cannot be of type %s", fieldName(mismatch.Field), mismatch.Value)
	}
	if err != nil {
		return lineErrorf(node.Line, "%w", err)
	}
	if len(strict) == 0 {
		return nil
	}
	line := node.Line
	if f, ok := errors.AsType[strictjson.FieldError](strict[0]); ok {
		line = lineOf(node, "", f.FieldPath(), node.Line)
	}
	return lineErrorf(line, "%w", strict[0])
}

func fieldName(field string) string {
	if field == "" {
		return "the object"
	}
	return field
}

// child returns the value of a mapping's key, or nil.
func child(mapping *yaml.Node, key string) *yaml.Node {
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if mapping.Content[i].Value == key {
			return target(mapping.Content[i+1])
		}
	}
	return nil
}

// target follows an alias to its anchor.
func target(node *yaml.Node) *yaml.Node {
	if node.Kind == yaml.AliasNode {
		return node.Alias
	}
	return node
}

// lineOf finds the line of the field at path, in the notation of sigs.k8s.io/json: a.b[0].c. It returns the line of the
// innermost part of the path that it can find.
func lineOf(node *yaml.Node, prefix, path string, line int) int {
	switch node = target(node); node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			key := node.Content[i]
			at := strings.TrimPrefix(prefix+"."+key.Value, ".")
			switch {
			case at == path:
				return key.Line
			case within(path, at):
				return lineOf(node.Content[i+1], at, path, key.Line)
			}
		}
	case yaml.SequenceNode:
		for i, item := range node.Content {
			if at := prefix + "[" + strconv.Itoa(i) + "]"; within(path, at) {
				return lineOf(item, at, path, item.Line)
			}
		}
	}
	return line
}

// within tells whether path leads into the field at prefix.
func within(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	return ok && (strings.HasPrefix(rest, ".") || strings.HasPrefix(rest, "["))
}
