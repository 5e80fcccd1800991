package tools

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

type order struct {
	Item   string   `json:"item" jsonschema:"what to order"`
	Count  int      `json:"count,omitempty"`
	Notes  []string `json:"notes,omitempty"`
	Buyer  person   `json:"buyer,omitzero"`
	Urgent *bool    `json:"urgent,omitempty"`
}

type person struct {
	Name string `json:"name"`
}

func readOrder(t *testing.T, text string) (order, *mismatch) {
	t.Helper()
	reads, err := newReader[order]()
	if err != nil {
		t.Fatal(err)
	}
	given, err := reads.read(text)
	var unfit *mismatch
	if err != nil && !errors.As(err, &unfit) {
		t.Fatal(err)
	}
	return given, unfit
}

func TestTheSchemaSaysWhatTheStructSays(t *testing.T) {
	reads, err := newReader[order]()
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Type       string
		Required   []string
		Properties map[string]struct{ Description string }
		Additional any `json:"additionalProperties"`
	}
	if err := json.Unmarshal([]byte(reads.schemaJSON), &schema); err != nil {
		t.Fatal(err)
	}
	if schema.Type != "object" || len(schema.Required) != 1 || schema.Required[0] != "item" {
		t.Errorf("%s", reads.schemaJSON)
	}
	if schema.Properties["item"].Description != "what to order" || schema.Additional == true {
		t.Errorf("%s", reads.schemaJSON)
	}
}

func TestArgumentsThatFitAreRead(t *testing.T) {
	given, unfit := readOrder(t, `{"item": "tea", "count": 2, "notes": ["hot"], "buyer": {"name": "Ann"}, "urgent": true}`)
	if unfit != nil || given.Item != "tea" || given.Count != 2 || given.Notes[0] != "hot" || given.Buyer.Name != "Ann" {
		t.Errorf("%+v, %v", given, unfit)
	}
}

func TestArgumentsThatDoNotFitAreToldWithTheirPath(t *testing.T) { // C027
	deep := strings.Repeat("[", 40) + strings.Repeat("]", 40)
	for text, path := range map[string]string{
		`{"item": 1}`:                                    "/item",
		`{}`:                                             "",
		`{"item": "tea", "cuont": 2}`:                    "",
		`{"item": "tea", "count": 1.5}`:                  "/count",
		`{"item": "tea", "notes": ["hot", 1]}`:           "/notes",
		`{"item": "tea", "buyer": {"name": 1}}`:          "/buyer/name",
		`{"item": "tea", "item": "coffee"}`:              "",
		`{"item": "tea", "notes": ` + deep + `}`:         "",
		`{"item": "tea"`:                                 "",
		`{"item": "tea"} {}`:                             "",
		`"tea"`:                                          "",
		`{"item": "tea", "count": 99999999999999999999}`: "/count",
	} {
		_, unfit := readOrder(t, text)
		if unfit == nil || unfit.path != path || unfit.message == "" {
			t.Errorf("%s: %v, want a mismatch at %q", text, unfit, path)
		}
	}
}

func TestATypeWithoutASchemaIsRefusedWhenItIsAdded(t *testing.T) {
	if _, err := newReader[int](); err == nil {
		t.Error("int is taken for arguments")
	}
	if _, err := newReader[struct{ Do func() }](); err == nil {
		t.Error("a function is taken for an argument")
	}
}
