package tools

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func stores(t *testing.T, retention time.Duration) map[string]store {
	t.Helper()
	opened, err := openFile(filepath.Join(t.TempDir(), "calls.db"), retention)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = opened.close() })
	return map[string]store{"memory": newMemory(retention), "file": opened}
}

func TestAStoreRemembersTheLastOfEachKey(t *testing.T) {
	for name, remembers := range stores(t, time.Hour) {
		t.Run(name, func(t *testing.T) {
			want := entry{state: stateDone, epoch: 2, digest: digest{1}, result: []byte("x")}
			for _, each := range []entry{{state: stateRunning, epoch: 1, digest: digest{1}}, want} {
				if err := remembers.put("a", each); err != nil {
					t.Fatal(err)
				}
			}
			found, err := remembers.find("a")
			if err != nil || found == nil || found.state != stateDone || found.epoch != 2 || string(found.result) != "x" {
				t.Errorf("%+v, %v", found, err)
			}
			if nothing, err := remembers.find("b"); nothing != nil || err != nil {
				t.Errorf("%+v, %v", nothing, err)
			}
		})
	}
}

func TestAStoreTellsWhatItHoldsTheLatestFirst(t *testing.T) {
	for name, remembers := range stores(t, time.Hour) {
		t.Run(name, func(t *testing.T) {
			for key, state := range []state{stateDone, stateBuried, stateRunning, stateDone} {
				if err := remembers.put(fmt.Sprint(key), entry{state: state}); err != nil {
					t.Fatal(err)
				}
			}
			held, err := remembers.held(2)
			if err != nil || len(held) != 2 || held[0] != (heldKey{"3", true}) || held[1] != (heldKey{"2", false}) {
				t.Errorf("%v, %v", held, err)
			}
		})
	}
}

func TestAStoreForgetsAfterTheRetention(t *testing.T) {
	for name, remembers := range stores(t, time.Nanosecond) {
		t.Run(name, func(t *testing.T) {
			for _, key := range []string{"a", "b", "a"} {
				if err := remembers.put(key, entry{state: stateDone}); err != nil {
					t.Fatal(err)
				}
			}
			found, err := remembers.find("a")
			held, heldErr := remembers.held(10)
			if found != nil || err != nil || len(held) != 0 || heldErr != nil {
				t.Errorf("%+v, %v, %v, %v", found, err, held, heldErr)
			}
		})
	}
}

func TestAFileIsReadByTheNextProcessAndByOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calls.db")
	first, err := openFile(path, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for number := range 50 {
		group.Go(func() {
			if err := first.put(fmt.Sprint(number), entry{state: stateRunning}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if err := first.close(); err != nil {
		t.Fatal(err)
	}
	second, err := openFile(path, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	defer second.close()
	if held, err := second.held(100); len(held) != 50 || err != nil {
		t.Errorf("%d keys, %v", len(held), err)
	}
}
