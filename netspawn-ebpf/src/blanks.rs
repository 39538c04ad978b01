//! Instructions that the object leaves blank, for the loader to fill in with what the
//! running kernel has: fields of `struct sk_buff` that `__sk_buff` hides, and the way to
//! them (`kernel::hidden` uses them, `datapath::blanks` of the loader fills them in).
//!
//! A blank is an ordinary instruction with a number in it that nothing else has. Constants
//! in `.rodata` would do as well, but cost each packet two loads apiece.

/// Numbers of constants: `dst = NUMBER`.
pub mod constant {
    /// Which [`super::access`] there is.
    pub const ACCESS: i32 = 0x6e5f_0101;
    /// The bits of `ip_summed` in its byte.
    pub const IP_SUMMED_MASK: i32 = 0x6e5f_0102;
    /// Where in `struct sk_buff` the bytes begin that [`super::access::PROBE`] copies.
    pub const COPY_FROM: i32 = 0x6e5f_0103;
    /// How many these are, [`super::COPY`] at most.
    pub const COPY_LENGTH: i32 = 0x6e5f_0104;
    /// Where `end` is in `struct sk_buff`.
    pub const END: i32 = 0x6e5f_0105;
    /// Where `head` is in `struct sk_buff`.
    pub const HEAD: i32 = 0x6e5f_0106;
    /// Where `gso_type` is in `struct skb_shared_info`.
    pub const GSO_TYPE: i32 = 0x6e5f_0107;
    /// BTF id of `struct skb_shared_info`.
    pub const SHARED_INFO: i32 = 0x6e5f_0108;
    /// [`COPY_FROM`] below 0: the verifier lets nothing be subtracted from a pointer to the
    /// stack, but adds to it what is negative.
    pub const COPY_BACK: i32 = 0x6e5f_010a;
    /// Where `mac_header` is in `struct sk_buff`.
    pub const MAC_HEADER: i32 = 0x6e5f_0109;

    /// Where `frag_list` is in `struct skb_shared_info`.
    pub const FRAG_LIST: i32 = 0x6e5f_010b;
    /// Where `next` is in `struct sk_buff`.
    pub const NEXT: i32 = 0x6e5f_010c;
    /// Where `len` is in `struct sk_buff`, and `data_len` behind it.
    pub const LEN: i32 = 0x6e5f_010d;

    /// All of them.
    pub const ALL: [i32; 13] = [
        ACCESS,
        IP_SUMMED_MASK,
        COPY_FROM,
        COPY_LENGTH,
        END,
        HEAD,
        GSO_TYPE,
        SHARED_INFO,
        MAC_HEADER,
        COPY_BACK,
        FRAG_LIST,
        NEXT,
        LEN,
    ];
}

/// Numbers of functions: `call NUMBER`.
pub mod function {
    /// `bpf_cast_to_kern_ctx`.
    pub const KERNEL_CONTEXT: i32 = 0x6e5f_0201;
    /// `bpf_rdonly_cast`.
    pub const READ_ONLY: i32 = 0x6e5f_0202;

    /// All of them.
    pub const ALL: [i32; 2] = [KERNEL_CONTEXT, READ_ONLY];
}

/// Numbers of fields: `dst = *(size *)(src + NUMBER)`.
pub mod field {
    /// The byte of `ip_summed`.
    pub const IP_SUMMED: i16 = 0x7e01;
    /// `csum_start` and `csum_offset`, one behind the other, four bytes.
    pub const CSUM: i16 = 0x7e02;
    /// `mac_header`, two bytes.
    pub const MAC_HEADER: i16 = 0x7e03;
    /// `end`, four bytes.
    pub const END: i16 = 0x7e04;
    /// `head`, eight bytes.
    pub const HEAD: i16 = 0x7e05;
    /// `gso_type` of `struct skb_shared_info`, four bytes.
    pub const GSO_TYPE: i16 = 0x7e06;

    /// `frag_list` of `struct skb_shared_info`, eight bytes.
    pub const FRAG_LIST: i16 = 0x7e07;
    /// `next`, eight bytes.
    pub const NEXT: i16 = 0x7e08;
    /// `len`, four bytes.
    pub const LEN: i16 = 0x7e09;
    /// `data_len`, four bytes.
    pub const DATA_LEN: i16 = 0x7e0a;

    /// All of them.
    pub const ALL: [i16; 10] = [
        IP_SUMMED, CSUM, MAC_HEADER, END, HEAD, GSO_TYPE, FRAG_LIST, NEXT, LEN, DATA_LEN,
    ];
}

/// Values of [`constant::ACCESS`].
pub mod access {
    /// The fields cannot be seen: neither of the others is to be had.
    pub const NONE: i32 = 0;
    /// By a pointer to the kernel's own context (`bpf_cast_to_kern_ctx`, Linux 6.2).
    pub const KERNEL_CONTEXT: i32 = 1;
    /// By copies (`bpf_probe_read_kernel`), which the lockdown mode `confidentiality`
    /// forbids.
    pub const PROBE: i32 = 2;
}

/// Bytes that hold `ip_summed`, `csum_start` and `csum_offset` in every known layout of
/// `struct sk_buff`.
pub const COPY: usize = 16;
