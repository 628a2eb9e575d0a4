//! What the programs need to know to tell the node's own connections: the addresses of its enrolled pods, and the cgroups
//! whose processes are pods' and not the node's.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use agent_ebpf::{Address, Tuple, maps};
use aya::maps::{HashMap as BpfHashMap, MapData, MapError};

use super::{Error, cgroup::PodCgroups, error::absent_is_fine};

/// The id that no cgroup has: the pods' cgroups cannot be told, and nobody is exempt.
const UNKNOWN: u64 = 0;

/// The maps of the node's own connections, with a copy of what the agent writes.
pub(super) struct Node {
    local: BpfHashMap<MapData, Address, u64>,
    addresses: HashMap<Address, u64>,
    kubepods: BpfHashMap<MapData, u64, u32>,
    cgroups: HashSet<u64>,
    /// What the log says of them.
    told: Option<PodCgroups>,
    connections: BpfHashMap<MapData, Tuple, u64>,
}

impl Node {
    /// Takes over what an earlier agent wrote.
    pub(super) fn adopt(
        local: BpfHashMap<MapData, Address, u64>,
        kubepods: BpfHashMap<MapData, u64, u32>,
        connections: BpfHashMap<MapData, Tuple, u64>,
    ) -> Result<Self, Error> {
        let addresses = local.iter().collect::<Result<_, _>>().map_err(Error::map(maps::LOCAL))?;
        let cgroups = kubepods.keys().collect::<Result<_, _>>().map_err(Error::map(maps::KUBEPODS))?;
        Ok(Self { local, addresses, kubepods, cgroups, told: None, connections })
    }

    /// Makes a pod's addresses what is wanted; none where it goes.
    pub(super) fn set_addresses(&mut self, netns: u64, want: &[IpAddr]) -> Result<(), Error> {
        let failed = |error| Error::map(maps::LOCAL)(error);
        let want: HashSet<Address> = want.iter().copied().map(Address::from).collect();
        for address in &want {
            if self.addresses.get(address) != Some(&netns) {
                self.local.insert(address, netns, 0).map_err(failed)?;
                self.addresses.insert(*address, netns);
            }
        }
        let theirs =
            |(address, of): (&Address, &u64)| (*of == netns && !want.contains(address)).then_some(*address);
        let old: Vec<Address> = self.addresses.iter().filter_map(theirs).collect();
        for address in old {
            absent_is_fine(self.local.remove(&address)).map_err(failed)?;
            self.addresses.remove(&address);
        }
        Ok(())
    }

    /// Makes the pods' cgroups what was found. While they change nobody is exempt, as where they cannot be told.
    pub(super) fn set_cgroups(&mut self, found: &PodCgroups) -> Result<(), Error> {
        let want: HashSet<u64> = match found {
            PodCgroups::Known(ids) => ids.iter().copied().collect(),
            PodCgroups::Unknown(_) => HashSet::from([UNKNOWN]),
        };
        if want != self.cgroups {
            self.change_cgroups(&want).map_err(Error::map(maps::KUBEPODS))?;
        }
        self.tell(found);
        Ok(())
    }

    /// Logs what is news.
    fn tell(&mut self, found: &PodCgroups) {
        if self.told.as_ref() == Some(found) {
            return;
        }
        match found {
            PodCgroups::Known(ids) => tracing::debug!(?ids, "the cgroups of the node's pods"),
            PodCgroups::Unknown(why) => tracing::warn!(
                why,
                "the cgroups of the node's pods cannot be told: the node's own connections to its pods, such as the \
                 kubelet's probes, are treated as anybody's"
            ),
        }
        self.told = Some(found.clone());
    }

    /// The mark first: fewer than the bound are known, so that there is always room for it.
    fn change_cgroups(&mut self, want: &HashSet<u64>) -> Result<(), MapError> {
        self.add_cgroup(UNKNOWN)?;
        let old: Vec<u64> =
            self.cgroups.iter().filter(|id| **id != UNKNOWN && !want.contains(id)).copied().collect();
        for id in old {
            self.remove_cgroup(id)?;
        }
        for id in want {
            self.add_cgroup(*id)?;
        }
        if want.contains(&UNKNOWN) { Ok(()) } else { self.remove_cgroup(UNKNOWN) }
    }

    fn add_cgroup(&mut self, id: u64) -> Result<(), MapError> {
        self.kubepods.insert(id, 1, 0)?;
        self.cgroups.insert(id);
        Ok(())
    }

    fn remove_cgroup(&mut self, id: u64) -> Result<(), MapError> {
        absent_is_fine(self.kubepods.remove(&id))?;
        self.cgroups.remove(&id);
        Ok(())
    }

    /// Returns whether a connection is one of the node's own.
    pub(super) fn made(&self, tuple: &Tuple) -> Result<bool, Error> {
        match self.connections.get(tuple, 0) {
            Ok(_) => Ok(true),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(Error::map(maps::NODE)(error)),
        }
    }
}
