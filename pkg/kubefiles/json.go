package kubefiles

import (
	"bytes"
	"encoding/json"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Limits that keep a small file from becoming a large object, by aliases of aliases, or a deep recursion, by an alias
// of what it is part of.
const (
	maxDepth = 100
	maxJSON  = 2 << 20 // bytes of one object; etcd takes no more than 1.5 MiB
)

// jsonWriter turns a YAML node into JSON. Unlike the YAML library's own conversion it leaves timestamps the strings
// that Kubernetes takes them for, refuses a key that stands twice, and knows afterwards which line a byte came from.
type jsonWriter struct {
	out   bytes.Buffer
	marks []mark // by ascending offset
}

// mark is where a value begins.
type mark struct {
	offset int64
	line   int
}

// lineAt returns the line of the value that the JSON decoder had begun to read at offset. The offset that decoders
// report is somewhere in the value or right after it.
func (w *jsonWriter) lineAt(offset int64) int {
	i, _ := slices.BinarySearchFunc(w.marks, offset, func(m mark, offset int64) int {
		if m.offset < offset {
			return -1
		}
		return 1
	})
	return w.marks[max(i-1, 0)].line
}

// write appends node. Its errors are *lineErrors.
func (w *jsonWriter) write(node *yaml.Node, depth int) error {
	if depth > maxDepth || w.out.Len() > maxJSON {
		return lineErrorf(node.Line, "nested too deeply or repeated too often by aliases")
	}
	w.marks = append(w.marks, mark{offset: int64(w.out.Len()), line: node.Line})
	switch node.Kind {
	case yaml.AliasNode:
		return w.write(node.Alias, depth+1)
	case yaml.MappingNode:
		return w.writeMapping(node, depth)
	case yaml.SequenceNode:
		w.out.WriteByte('[')
		for i, item := range node.Content {
			if i > 0 {
				w.out.WriteByte(',')
			}
			if err := w.write(item, depth+1); err != nil {
				return err
			}
		}
		w.out.WriteByte(']')
		return nil
	default:
		return w.writeScalar(node)
	}
}

func (w *jsonWriter) writeMapping(node *yaml.Node, depth int) error {
	keys := make(map[string]int, len(node.Content)/2)
	w.out.WriteByte('{')
	for i := 0; i+1 < len(node.Content); i += 2 {
		key := target(node.Content[i])
		switch {
		case key.Kind != yaml.ScalarNode:
			return lineErrorf(key.Line, "a key that is no string")
		case key.ShortTag() == "!!merge":
			return lineErrorf(key.Line, "merge keys (<<) are not supported; write the fields out")
		}
		if line, ok := keys[key.Value]; ok {
			return lineErrorf(node.Content[i].Line, "%q stands in line %d already", key.Value, line)
		}
		keys[key.Value] = key.Line
		if i > 0 {
			w.out.WriteByte(',')
		}
		if err := w.encode(key, key.Value); err != nil {
			return err
		}
		w.out.WriteByte(':')
		if err := w.write(node.Content[i+1], depth+1); err != nil {
			return err
		}
	}
	w.out.WriteByte('}')
	return nil
}

func (w *jsonWriter) writeScalar(node *yaml.Node) error {
	switch node.ShortTag() {
	case "!!null", "!!bool", "!!int", "!!float":
		var v any
		if err := node.Decode(&v); err != nil {
			return lineErrorf(node.Line, "%q is no %s", node.Value, node.ShortTag()[2:])
		}
		return w.encode(node, v)
	case "!!str", "!!timestamp", "!!binary":
		return w.encode(node, node.Value)
	default:
		return lineErrorf(node.Line, "the tag %s means nothing in a Kubernetes object", node.Tag)
	}
}

func (w *jsonWriter) encode(node *yaml.Node, v any) error {
	encoded, err := json.Marshal(v)
	if err != nil {
		return lineErrorf(node.Line, "%q cannot be written as JSON", node.Value) // .inf and .nan
	}
	w.out.Write(encoded)
	return nil
}
