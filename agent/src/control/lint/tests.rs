//! Each kind of finding, where it is due and where it is not.
