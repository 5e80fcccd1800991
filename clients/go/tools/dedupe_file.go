package tools

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/bbolt"
)

const (
	lockWait = 5 * time.Second
	// How many expired entries one change takes along.
	expiredAtOnce = 100
	headBytes     = 8 + 1 + 8 + 4 + len(digest{})
)

var (
	callsBucket = []byte("calls")
	// Keys in the order of their last change: 8 bytes of time, then the key.
	timesBucket = []byte("calls_by_time")
)

// file remembers calls in a file that one process at a time uses, each change synced to the disk before it counts;
// changes that come at the same time share a sync.
type file struct {
	retention time.Duration
	database  *bbolt.DB
}

func openFile(path string, retention time.Duration) (*file, error) {
	database, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: lockWait})
	if err != nil {
		return nil, fmt.Errorf("the store of calls at %s cannot be opened: %w", path, err)
	}
	database.MaxBatchDelay = time.Millisecond
	err = database.Update(func(tx *bbolt.Tx) error {
		_, callsErr := tx.CreateBucketIfNotExists(callsBucket)
		_, timesErr := tx.CreateBucketIfNotExists(timesBucket)
		return errors.Join(callsErr, timesErr)
	})
	if err != nil {
		return nil, errors.Join(err, database.Close())
	}
	return &file{retention, database}, nil
}

func (f *file) find(key string) (*entry, error) {
	var found *entry
	err := f.database.View(func(tx *bbolt.Tx) error {
		changed, known, err := decodeEntry(tx.Bucket(callsBucket).Get([]byte(key)))
		if known != nil && changed >= f.oldest() {
			found = known
		}
		return err
	})
	return found, err
}

func (f *file) put(key string, given entry) error {
	return f.database.Batch(func(tx *bbolt.Tx) error {
		calls, times := tx.Bucket(callsBucket), tx.Bucket(timesBucket)
		if err := f.forget(calls, times); err != nil {
			return err
		}
		if before, known, err := decodeEntry(calls.Get([]byte(key))); err != nil {
			return err
		} else if known != nil {
			if err := times.Delete(timeKey(before, key)); err != nil {
				return err
			}
		}
		now := time.Now().UnixNano()
		return errors.Join(calls.Put([]byte(key), encodeEntry(now, given)), times.Put(timeKey(now, key), nil))
	})
}

func (f *file) held(limit int) ([]heldKey, error) {
	var keys []heldKey
	err := f.database.View(func(tx *bbolt.Tx) error {
		calls, cursor := tx.Bucket(callsBucket), tx.Bucket(timesBucket).Cursor()
		for timed, _ := cursor.Last(); timed != nil && len(keys) < limit; timed, _ = cursor.Prev() {
			changed, known, err := decodeEntry(calls.Get(timed[8:]))
			if err != nil || changed < f.oldest() {
				return err
			}
			if known != nil && known.state != stateBuried {
				keys = append(keys, heldKey{string(timed[8:]), known.state == stateDone})
			}
		}
		return nil
	})
	return keys, err
}

func (f *file) isDurable() bool { return true }

func (f *file) close() error { return f.database.Close() }

func (f *file) oldest() int64 { return time.Now().Add(-f.retention).UnixNano() }

func (f *file) forget(calls, times *bbolt.Bucket) error {
	oldest := f.oldest()
	var expired [][]byte
	cursor := times.Cursor()
	for timed, _ := cursor.First(); timed != nil && len(expired) < expiredAtOnce; timed, _ = cursor.Next() {
		if int64(binary.BigEndian.Uint64(timed)) >= oldest {
			break
		}
		expired = append(expired, append([]byte(nil), timed...))
	}
	for _, timed := range expired {
		if err := errors.Join(calls.Delete(timed[8:]), times.Delete(timed)); err != nil {
			return err
		}
	}
	return nil
}

func timeKey(changed int64, key string) []byte {
	return append(binary.BigEndian.AppendUint64(nil, uint64(changed)), key...)
}

func encodeEntry(changed int64, given entry) []byte {
	data := make([]byte, 0, headBytes+len(given.result))
	data = binary.BigEndian.AppendUint64(data, uint64(changed))
	data = append(data, byte(given.state))
	data = binary.BigEndian.AppendUint64(data, given.epoch)
	data = binary.BigEndian.AppendUint32(data, uint32(given.attempt))
	data = append(data, given.digest[:]...)
	return append(data, given.result...)
}

// decodeEntry reads what encodeEntry wrote; nil of nothing. What it gives is its own, beyond the transaction.
func decodeEntry(data []byte) (changed int64, found *entry, err error) {
	if data == nil {
		return 0, nil, nil
	}
	if len(data) < headBytes {
		return 0, nil, errors.New("the store of calls is damaged")
	}
	found = &entry{state: state(data[8]), epoch: binary.BigEndian.Uint64(data[9:])}
	found.attempt = int32(binary.BigEndian.Uint32(data[17:]))
	copy(found.digest[:], data[21:])
	found.result = append([]byte(nil), data[headBytes:]...)
	return int64(binary.BigEndian.Uint64(data)), found, nil
}
