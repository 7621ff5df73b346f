//! Numbers by which records name each other. Local to a stream and never reused in it.

use bincode::{Decode, Encode};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
        pub struct $name(pub u32);
    };
}

id! {
    /// A task: a process with its own pid, or one of the processes of a tree.
    TaskId
}
id! {
    /// A space: an address space of tasks, or a shared memory object. Mappings, zaps and pages name a space.
    SpaceId
}
id! {
    /// A table of descriptors, shared by all tasks that were made with `CLONE_FILES`.
    FdTableId
}
id! {
    /// A table of signal actions, shared by all tasks that were made with `CLONE_SIGHAND`.
    SigTableId
}
id! {
    /// An open file description: what descriptors refer to, with its offset and status flags.
    OpenFileId
}
id! {
    /// A file that something refers to by path: mapped, opened, the executable, or a directory.
    FileId
}
