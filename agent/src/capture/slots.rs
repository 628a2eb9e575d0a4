//! Which pod has which slot: the index of its entry and listeners.

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use agent_ebpf::MAX_PODS;

use super::{Error, tables::Tables};

/// The slots of the node.
#[derive(Debug)]
pub(super) struct Slots(Mutex<State>);

#[derive(Debug)]
struct State {
    by_netns: HashMap<u64, Slot>,
    /// Where the search for a free slot goes on, so that a slot is reused as late as possible: a program that is just
    /// running may still read the entry of a pod that has gone.
    next: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    index: u32,
    /// Enrolled by this agent, not only by an earlier one.
    ours: bool,
    /// Enrolled by an earlier agent.
    adopted: bool,
}

impl Slots {
    /// Takes over what an earlier agent enrolled.
    pub(super) fn adopt(tables: &Tables) -> Result<Self, Error> {
        let by_netns: HashMap<_, _> = tables
            .pods()?
            .into_iter()
            .map(|(netns, index)| (netns, Slot { index, ours: false, adopted: true }))
            .collect();
        Ok(Self(Mutex::new(State { by_netns, next: 0 })))
    }

    /// Takes a pod's slot, the one that it had or a free one; none where it is enrolled or no slot is free.
    pub(super) fn take(&self, netns: u64) -> Result<u32, &'static str> {
        let mut state = self.lock();
        if let Some(slot) = state.by_netns.get_mut(&netns) {
            if slot.ours {
                return Err("it is enrolled already");
            }
            slot.ours = true;
            return Ok(slot.index);
        }
        let used: HashSet<u32> = state.by_netns.values().map(|slot| slot.index).collect();
        let index = (0..MAX_PODS)
            .map(|offset| (state.next + offset) % MAX_PODS)
            .find(|index| !used.contains(index))
            .ok_or("every slot of the node is taken")?;
        state.next = (index + 1) % MAX_PODS;
        state.by_netns.insert(netns, Slot { index, ours: true, adopted: false });
        Ok(index)
    }

    /// Returns whether an earlier agent enrolled any pod that is still known.
    pub(super) fn are_adopted(&self) -> bool {
        self.lock().by_netns.values().any(|slot| slot.adopted)
    }

    /// Returns whether an earlier agent enrolled the pod.
    pub(super) fn is_adopted(&self, netns: u64) -> bool {
        self.lock().by_netns.get(&netns).is_some_and(|slot| slot.adopted)
    }

    /// Leaves a pod's slot to whoever enrolls the pod next; the kernel's entries stay.
    pub(super) fn abandon(&self, netns: u64) {
        if let Some(slot) = self.lock().by_netns.get_mut(&netns) {
            slot.ours = false;
        }
    }

    /// Gives a pod's slot back.
    pub(super) fn release(&self, netns: u64) {
        self.lock().by_netns.remove(&netns);
    }

    /// Returns the pods that nobody has enrolled in this agent's life, without those to keep.
    pub(super) fn abandoned(&self, keep: &HashSet<u64>) -> Vec<(u64, u32)> {
        let state = self.lock();
        let abandoned = state.by_netns.iter().filter(|(netns, slot)| !slot.ours && !keep.contains(netns));
        abandoned.map(|(netns, slot)| (*netns, slot.index)).collect()
    }

    /// Returns the cookies of all enrolled pods.
    pub(super) fn netns(&self) -> Vec<u64> {
        self.lock().by_netns.keys().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(enrolled: &[(u64, u32)]) -> Slots {
        let by_netns = enrolled
            .iter()
            .map(|(netns, index)| (*netns, Slot { index: *index, ours: false, adopted: true }))
            .collect();
        Slots(Mutex::new(State { by_netns, next: 0 }))
    }

    #[test]
    fn an_adopted_pod_keeps_its_slot() {
        let slots = slots(&[(7, 3)]);
        assert_eq!(slots.take(7), Ok(3));
        assert!(slots.take(7).is_err());
        slots.take(8).unwrap();
        assert!(slots.is_adopted(7) && !slots.is_adopted(8));
    }

    #[test]
    fn a_slot_is_reused_as_late_as_possible() {
        let slots = slots(&[]);
        let first = slots.take(1).unwrap();
        slots.release(1);
        assert_ne!(slots.take(2), Ok(first));
    }

    #[test]
    fn there_are_no_more_slots_than_places() {
        let slots = slots(&[]);
        for netns in 0..u64::from(MAX_PODS) {
            slots.take(netns).unwrap();
        }
        assert!(slots.take(u64::MAX).is_err());
        slots.release(17);
        assert_eq!(slots.take(u64::MAX), Ok(17));
    }

    #[test]
    fn only_what_nobody_took_over_is_abandoned() {
        let slots = slots(&[(1, 0), (2, 1), (3, 2)]);
        slots.take(1).unwrap();
        assert_eq!(slots.abandoned(&HashSet::from([2])), [(3, 2)]);
    }
}
