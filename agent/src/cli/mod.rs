//! The subcommands of `culvert`, one file each.

pub mod ca;
