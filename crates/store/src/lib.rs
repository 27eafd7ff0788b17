//! The cell's small, watched, transactional state: embedded (redb) or etcd.
