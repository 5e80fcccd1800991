package tools

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
)

const maxDepth = 32

// mismatch says where arguments do not fit, as a JSON pointer, and why.
type mismatch struct {
	path    string
	message string
}

func (m *mismatch) Error() string { return m.path + ": " + m.message }

// reader reads arguments of a type, after the schema that was made from it.
type reader[A any] struct {
	schemaJSON string
	resolved   *jsonschema.Resolved
}

func newReader[A any]() (*reader[A], error) {
	if kind := reflect.TypeFor[A]().Kind(); kind != reflect.Struct && kind != reflect.Map {
		return nil, fmt.Errorf("arguments are a struct or a map, not %v", reflect.TypeFor[A]())
	}
	schema, err := jsonschema.For[A](nil)
	if err != nil {
		return nil, err
	}
	resolved, err := schema.Resolve(nil)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(schema)
	return &reader[A]{string(text), resolved}, err
}

// read reads arguments. Its error is a *mismatch.
func (r *reader[A]) read(text string) (A, error) {
	var arguments A
	if text == "" {
		text = "{}"
	}
	if err := checkJSON(text); err != nil {
		return arguments, err
	}
	var plain any
	if err := json.Unmarshal([]byte(text), &plain); err != nil {
		return arguments, &mismatch{"", "no JSON: " + err.Error()}
	}
	if err := r.resolved.Validate(plain); err != nil {
		return arguments, located(err)
	}
	if err := json.Unmarshal([]byte(text), &arguments); err != nil {
		var unfit *json.UnmarshalTypeError
		if errors.As(err, &unfit) && unfit.Field != "" {
			return arguments, &mismatch{"/" + strings.ReplaceAll(unfit.Field, ".", "/"), err.Error()}
		}
		return arguments, &mismatch{"", err.Error()}
	}
	return arguments, nil
}

// checkJSON refuses what encoding/json lets pass: a name that comes twice in an object, and deep nesting.
func checkJSON(text string) error {
	type level struct {
		names map[string]bool
		// Whether the next token of an object is a value.
		isValue bool
	}
	var levels []level
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return &mismatch{"", "no JSON: " + err.Error()}
		}
		if token == json.Delim('}') || token == json.Delim(']') {
			levels = levels[:len(levels)-1]
			continue
		}
		if depth := len(levels); depth > 0 && levels[depth-1].names != nil {
			top := &levels[depth-1]
			if name, isName := token.(string); isName && !top.isValue {
				if top.names[name] {
					return &mismatch{"", fmt.Sprintf("the name %.80q comes twice", name)}
				}
				top.names[name] = true
			}
			top.isValue = !top.isValue
		}
		switch token {
		case json.Delim('{'):
			levels = append(levels, level{names: map[string]bool{}})
		case json.Delim('['):
			levels = append(levels, level{})
		}
		if len(levels) > maxDepth {
			return &mismatch{"", fmt.Sprintf("nesting exceeds the limit of %d levels", maxDepth)}
		}
	}
	return nil
}

var validating = regexp.MustCompile(`validating (\S+): `)

// located makes a mismatch of the validator's error, which tells the way through the schema instead of that through
// the arguments. Below an array or a map it stops at that.
func located(err error) *mismatch {
	text := err.Error()
	found := validating.FindAllStringSubmatch(text, -1)
	message := validating.ReplaceAllString(text, "")
	if len(message) > 300 {
		message = strings.ToValidUTF8(message[:300], "") + "…"
	}
	if len(found) == 0 {
		return &mismatch{"", message}
	}
	steps := strings.Split(strings.Trim(found[len(found)-1][1], "/"), "/")
	var path strings.Builder
	for len(steps) >= 2 && steps[0] == "properties" {
		path.WriteString("/" + steps[1])
		steps = steps[2:]
	}
	return &mismatch{path.String(), message}
}

// writeJSON writes a value as JSON without escapes for HTML.
func writeJSON(value any) (string, error) {
	var buffer bytes.Buffer
	encoder := json.NewEncoder(&buffer)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return strings.TrimSuffix(buffer.String(), "\n"), err
}
