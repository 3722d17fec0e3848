// render prints what `helm template` prints for a chart without dependencies: the same template engine, the same
// functions from sprig, the same YAML and JSON schema libraries, from Debian's packages. For the tests, since Debian has
// no helm.
//
//	GO111MODULE=off GOPATH=/usr/share/gocode go run ./dist/helm/render [-n NAMESPACE] CHART [VALUES.yaml..]
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"github.com/xeipuuv/gojsonschema"
	"sigs.k8s.io/yaml"
)

type values = map[string]interface{}

func main() {
	namespace := flag.String("n", "default", "namespace of the release")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: render [-n NAMESPACE] CHART [VALUES.yaml..]")
		os.Exit(2)
	}
	text, err := render(flag.Arg(0), *namespace, flag.Args()[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		os.Exit(1)
	}
	fmt.Print(text)
}

func render(chart, namespace string, files []string) (string, error) {
	all, about := values{}, values{}
	for _, file := range append([]string{filepath.Join(chart, "values.yaml")}, files...) {
		read := values{}
		if err := load(file, &read); err != nil {
			return "", err
		}
		merge(all, read)
	}
	if err := load(filepath.Join(chart, "Chart.yaml"), &about); err != nil {
		return "", err
	}
	if err := check(filepath.Join(chart, "values.schema.json"), all); err != nil {
		return "", err
	}
	paths, err := filepath.Glob(filepath.Join(chart, "templates", "*"))
	if err != nil {
		return "", err
	}
	templates := template.New("").Option("missingkey=zero")
	templates.Funcs(functions(templates))
	for _, path := range paths {
		source, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if _, err := templates.New(filepath.Base(path)).Parse(string(source)); err != nil {
			return "", err
		}
	}
	top := values{
		"Values":  all,
		"Chart":   about,
		"Release": values{"Name": "flannel", "Namespace": namespace, "Service": "Helm", "IsInstall": true, "Revision": 1},
	}
	var out strings.Builder
	for _, path := range paths {
		name := filepath.Base(path)
		if !strings.HasSuffix(name, ".yaml") {
			continue
		}
		var text bytes.Buffer
		if err := templates.ExecuteTemplate(&text, name, top); err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "---\n# Source: %s\n%s\n", name, strings.ReplaceAll(text.String(), "<no value>", ""))
	}
	return out.String(), nil
}

func load(file string, into *values) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// merge puts what is in from over what is in into; null takes a value away.
func merge(into, from values) {
	for key, value := range from {
		below, isMap := value.(values)
		before, wasMap := into[key].(values)
		switch {
		case value == nil:
			delete(into, key)
		case isMap && wasMap:
			merge(before, below)
		default:
			into[key] = value
		}
	}
}

func check(file string, all values) error {
	schema, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	result, err := gojsonschema.Validate(gojsonschema.NewBytesLoader(schema), gojsonschema.NewGoLoader(all))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	var problems []string
	for _, problem := range result.Errors() {
		problems = append(problems, problem.String())
	}
	if len(problems) > 0 {
		return errors.New("values don't meet the specifications of the schema: " + strings.Join(problems, "; "))
	}
	return nil
}

// functions are sprig's without those that read the environment, and those that Helm has besides.
func functions(templates *template.Template) template.FuncMap {
	all := sprig.TxtFuncMap()
	delete(all, "env")
	delete(all, "expandenv")
	all["include"] = func(name string, data interface{}) (string, error) {
		var text strings.Builder
		err := templates.ExecuteTemplate(&text, name, data)
		return text.String(), err
	}
	all["required"] = func(why string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return value, errors.New(why)
		}
		return value, nil
	}
	all["toYaml"] = func(value interface{}) (string, error) {
		text, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(text), "\n"), err
	}
	all["toJson"] = func(value interface{}) (string, error) {
		text, err := json.Marshal(value)
		return string(text), err
	}
	return all
}
