//! Busy polling: a thread that has just moved bytes looks for the next ones a little longer before it sleeps.
//!
//! To wake a processor that sleeps takes tens of microseconds where it is a virtual one, and a message wakes an agent at
//! either end, there and back. So a thread looks on for a window after each message, and gives its processor to whoever else
//! wants it meanwhile (sched_yield(2)). It does so only while messages follow each other within that window: as the
//! kernel's own haltpoll has it (drivers/cpuidle/governors/haltpoll.c), what comes too late for it closes it.

use std::{
    cell::Cell,
    future::poll_fn,
    task::{Poll, Waker},
    time::{Duration, Instant},
};

thread_local! {
    static ACTIVITY: Activity = const { Activity { messages: Cell::new(0), waiting: Cell::new(None) } };
}

/// What the calling thread has moved so far, and who waits for more.
struct Activity {
    messages: Cell<u64>,
    waiting: Cell<Option<Waker>>,
}

/// Says that the calling thread has moved something, or begun what will move something.
pub(super) fn moved() {
    ACTIVITY.with(|activity| {
        activity.messages.set(activity.messages.get().wrapping_add(1));
        if let Some(waiting) = activity.waiting.take() {
            waiting.wake();
        }
    });
}

/// Keeps the calling thread looking for at most `window` after each [`moved`], where that is worth it. To be spawned on a
/// runtime of that thread alone.
pub(super) async fn run(window: Duration) {
    let mut worth = Worth::default();
    let mut seen = messages();
    // What came before is as good as never.
    let mut last = None::<Instant>;
    loop {
        next(seen).await;
        let now = Instant::now();
        worth.note(last.is_some_and(|last| now.duration_since(last) < window));
        (seen, last) = (messages(), Some(now));
        let mut since = now;
        while worth.is_given() && since.elapsed() < window {
            // The runtime asks the kernel for events, without waiting for them.
            tokio::task::yield_now().await;
            if messages() == seen {
                let _ = nix::sched::sched_yield();
            } else {
                since = Instant::now();
                worth.note(true);
                (seen, last) = (messages(), Some(since));
            }
        }
    }
}

fn messages() -> u64 {
    ACTIVITY.with(|activity| activity.messages.get())
}

/// Waits until more was moved than `seen`.
async fn next(seen: u64) {
    poll_fn(|cx| {
        if messages() != seen {
            return Poll::Ready(());
        }
        ACTIVITY.with(|activity| activity.waiting.set(Some(cx.waker().clone())));
        Poll::Pending
    })
    .await;
}

/// Whether messages follow each other so closely that it is worth looking for the next.
#[derive(Debug, Default)]
struct Worth(u8);

impl Worth {
    /// Takes note of a message that came within the window after the one before, or later.
    fn note(&mut self, near: bool) {
        self.0 = if near { (self.0 + 1).min(MOST) } else { self.0.saturating_sub(PENALTY) };
    }

    fn is_given(&self) -> bool {
        self.0 >= LEAST
    }
}

/// So many close messages open the window.
const LEAST: u8 = 2;
/// A late one counts against so many close ones,
const PENALTY: u8 = 4;
/// and no more than so many are remembered: two late ones close it.
const MOST: u8 = 8;

#[cfg(test)]
mod tests {
    use std::{
        pin::{Pin, pin},
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering::SeqCst},
        },
        task::{Context, Wake},
    };

    use super::*;

    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, SeqCst);
        }
    }

    /// Polls for as long as the future wakes itself; returns whether it did so at all.
    fn settle(mut future: Pin<&mut impl Future<Output = ()>>) -> bool {
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let waker = woken.clone().into();
        let mut cx = Context::from_waker(&waker);
        let mut looked = false;
        loop {
            assert!(future.as_mut().poll(&mut cx).is_pending());
            if !woken.0.swap(false, SeqCst) {
                return looked;
            }
            looked = true;
        }
    }

    #[test]
    fn only_close_messages_are_worth_looking_for() {
        let mut worth = Worth::default();
        let mut after = |near| {
            worth.note(near);
            worth.is_given()
        };
        assert_eq!([true, true, false].map(&mut after), [false, true, false]);
        assert_eq!([false; 5].map(&mut after), [false; 5]);
        assert_eq!([true; 20].map(&mut after)[1..], [true; 19]);
        assert_eq!([false, false].map(&mut after), [true, false]);
    }

    #[test]
    fn a_thread_looks_for_more_after_close_messages_and_then_sleeps() {
        let mut polling = pin!(run(Duration::from_millis(300)));
        assert!(!settle(polling.as_mut()), "nothing has moved yet");
        // The last comes after a whole window in which nothing did.
        for (number, looks) in [false, false, true, false].into_iter().enumerate() {
            moved();
            assert_eq!(settle(polling.as_mut()), looks, "message {number}");
        }
    }

    #[test]
    fn a_thread_whose_messages_are_far_apart_sleeps_at_once() {
        let mut polling = pin!(run(Duration::from_nanos(1)));
        for _ in 0..20 {
            moved();
            assert!(!settle(polling.as_mut()));
        }
    }
}
