//! Bytes between a socket and rustls, in memory that the streams of a thread share.

use std::{cell::RefCell, mem, ops::Range};

/// Bytes that wait: for the rest of a record, for a reader, or for the socket. It has memory only while there are any,
/// or while some are being put in.
#[derive(Default)]
pub(super) struct Buffer {
    memory: Option<Memory>,
    filled: Range<usize>,
}

/// A piece of memory that the thread keeps for the next one who needs it. What was in it is overwritten, not wiped:
/// nobody sees more than what was put in since.
struct Memory(Vec<u8>);

impl Buffer {
    pub(super) fn is_empty(&self) -> bool {
        self.filled.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.filled.len()
    }

    /// Returns what waits.
    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.as_ref().map_or(&[], |memory| &memory.0[self.filled.clone()])
    }

    /// Returns what waits, to be decrypted where it is.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.as_mut().map_or(&mut [], |memory| &mut memory.0[self.filled.clone()])
    }

    /// Returns room behind what waits. [`Self::fill`] says how much of it was used, also where it was nothing.
    pub(super) fn room(&mut self) -> &mut [u8] {
        let memory = self.memory.get_or_insert_with(Memory::take);
        if self.filled.start > 0 {
            memory.0.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        &mut memory.0[self.filled.end..]
    }

    /// As [`Self::room`], for at least `len` bytes: with more memory than others have, where it must be.
    pub(super) fn room_for(&mut self, len: usize) -> &mut [u8] {
        let needed = self.filled.len() + len;
        let memory = self.memory.get_or_insert_with(Memory::take);
        if memory.0.len() < needed {
            memory.0.resize(self.filled.start + needed, 0);
        }
        self.room()
    }

    /// Adds the first bytes of the room to what waits.
    pub(super) fn fill(&mut self, len: usize) {
        self.filled.end += len;
        self.discard(0);
    }

    /// Forgets the first bytes of what waits.
    pub(super) fn discard(&mut self, len: usize) {
        self.filled.start += len;
        debug_assert!(self.filled.start <= self.filled.end, "more was discarded than there was");
        if self.filled.is_empty() {
            self.clear();
        }
    }

    /// Forgets all that waits.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Puts bytes behind what waits.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.room_for(bytes.len())[..bytes.len()].copy_from_slice(bytes);
        self.fill(bytes.len());
    }
}

#[cfg(test)]
impl Buffer {
    pub(super) fn has_memory(&self) -> bool {
        self.memory.is_some()
    }
}

impl Memory {
    fn take() -> Self {
        let kept = KEPT.try_with(|kept| kept.borrow_mut().pop()).ok().flatten();
        Self(kept.unwrap_or_else(|| vec![0; SIZE]))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let memory = mem::take(&mut self.0);
        // A thread that ends keeps nothing.
        let _ = KEPT.try_with(|kept| {
            let mut kept = kept.borrow_mut();
            if memory.len() == SIZE && kept.len() < KEEP {
                kept.push(memory);
            }
        });
    }
}

thread_local! {
    static KEPT: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A read or write of 64 KiB (larger pieces leave the cache before they are passed on), and beside it the beginning of a
/// record, which is 16 KiB and 261 bytes at the most (RFC 8446 §5.2).
pub(super) const SIZE: usize = 81 * 1024;

/// What a thread keeps: one for reading, one for writing, one for what is collected for a record, and one to spare.
const KEEP: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn kept() -> usize {
        KEPT.with(|kept| kept.borrow().len())
    }

    #[test]
    fn memory_is_given_back_with_the_last_byte_and_used_again() {
        let mut buffer = Buffer::default();
        assert_eq!((kept(), buffer.bytes()), (0, &[][..]));
        buffer.push(b"record");
        buffer.discard(2);
        assert_eq!((kept(), buffer.bytes()), (0, &b"cord"[..]));
        buffer.discard(4);
        assert_eq!((kept(), buffer.bytes()), (1, &[][..]));
        // Room that nothing was put in.
        assert_eq!(buffer.room().len(), SIZE);
        assert_eq!(kept(), 0);
        buffer.fill(0);
        assert_eq!(kept(), 1);
    }

    #[test]
    fn bytes_move_to_the_front_where_room_is_needed_and_never_change() {
        let mut buffer = Buffer::default();
        let pattern: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
        buffer.push(&pattern);
        assert_eq!(buffer.room().len(), 0);
        buffer.discard(SIZE - 10);
        assert_eq!(buffer.room().len(), SIZE - 10);
        buffer.push(b"more");
        assert_eq!(buffer.bytes(), [&pattern[SIZE - 10..], b"more"].concat());
    }

    #[test]
    fn larger_memory_than_others_have_is_not_kept() {
        let mut buffer = Buffer::default();
        buffer.push(b"before");
        buffer.discard(3);
        assert!(buffer.room_for(2 * SIZE).len() >= 2 * SIZE);
        assert_eq!(buffer.bytes(), b"ore");
        buffer.clear();
        assert_eq!(kept(), 0);
    }

    #[test]
    fn a_thread_keeps_only_a_few() {
        drop(
            (0..20)
                .map(|_| {
                    let mut buffer = Buffer::default();
                    buffer.push(b"x");
                    buffer
                })
                .collect::<Vec<_>>(),
        );
        assert_eq!(kept(), KEEP);
    }
}
