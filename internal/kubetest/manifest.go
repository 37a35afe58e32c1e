package kubetest

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// readManifests calls add with every document of the files, in their order, and its kind.
func readManifests(files []string, add func(kind string, document []byte) error) error {
	if len(files) == 0 {
		return errors.New("read manifests: no file is named")
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read manifest: %w", err)
		}
		for i, document := range bytes.Split(text, []byte("\n---\n")) {
			var meta metav1.TypeMeta
			if err = yaml.Unmarshal(document, &meta); err == nil {
				err = add(meta.Kind, document)
			}
			if err != nil {
				return fmt.Errorf("read manifest %s: document %d: %w", file, i+1, err)
			}
		}
	}
	return nil
}
