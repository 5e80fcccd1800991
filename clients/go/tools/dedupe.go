package tools

import (
	"container/list"
	"math"
	"sync"
	"time"
)

const (
	defaultRetention = 72 * time.Hour
	maxRemembered    = 100_000
	// The attempt of an entry that stands for all attempts of its epoch.
	everyAttempt = math.MaxInt32
)

// state is what is known of a key.
type state byte

const (
	// running: it was begun. Of a call that this process does not run: it was lost, and nobody knows how far it came.
	stateRunning state = iota + 1
	stateDone
	// buried: it was never begun, and must not be with the entry's epoch and attempt, or what came before.
	stateBuried
)

// entry is what is remembered of a key. The digest tells one request from another; the result is set when it is done.
// The attempt counts where the key is buried: the last one that must not be executed.
type entry struct {
	state   state
	epoch   uint64
	attempt int32
	digest  digest
	result  []byte
}

// covers says whether what is buried stands for an attempt of an epoch.
func (e *entry) covers(epoch uint64, attempt int32) bool {
	return epoch < e.epoch || (epoch == e.epoch && attempt <= e.attempt)
}

// heldKey is a key that was begun, and whether it has a result.
type heldKey struct {
	key    string
	isDone bool
}

// store remembers calls by key, for the retention after their last change. Safe for use by several goroutines.
type store interface {
	// find gives what is known of a key, nil for nothing.
	find(key string) (*entry, error)
	// put remembers. On return it outlives the process, if the store is durable.
	put(key string, remembered entry) error
	// held gives the keys that were begun, the latest first, at most so many.
	held(limit int) ([]heldKey, error)
	// isDurable says whether a key that is not here was never executed within the retention.
	isDurable() bool
	close() error
}

// memory remembers at most 100,000 calls, and nothing beyond the process.
type memory struct {
	retention time.Duration

	mu      sync.Mutex
	entries map[string]*list.Element
	// Of *remembered, the latest change first.
	order *list.List
}

type remembered struct {
	key     string
	changed time.Time
	entry   entry
}

func newMemory(retention time.Duration) *memory {
	return &memory{retention: retention, entries: map[string]*list.Element{}, order: list.New()}
}

func (m *memory) find(key string) (*entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	if element, ok := m.entries[key]; ok {
		found := element.Value.(*remembered).entry
		return &found, nil
	}
	return nil, nil
}

func (m *memory) put(key string, given entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if element, ok := m.entries[key]; ok {
		m.order.Remove(element)
	}
	m.entries[key] = m.order.PushFront(&remembered{key, time.Now(), given})
	m.forget()
	return nil
}

func (m *memory) held(limit int) ([]heldKey, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget()
	var keys []heldKey
	for element := m.order.Front(); element != nil && len(keys) < limit; element = element.Next() {
		if each := element.Value.(*remembered); each.entry.state != stateBuried {
			keys = append(keys, heldKey{each.key, each.entry.state == stateDone})
		}
	}
	return keys, nil
}

func (m *memory) isDurable() bool { return false }

func (m *memory) close() error { return nil }

func (m *memory) forget() {
	oldest := time.Now().Add(-m.retention)
	for element := m.order.Back(); element != nil; element = m.order.Back() {
		last := element.Value.(*remembered)
		if !last.changed.Before(oldest) && m.order.Len() <= maxRemembered {
			return
		}
		m.order.Remove(element)
		delete(m.entries, last.key)
	}
}
