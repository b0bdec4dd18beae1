// SPDX-License-Identifier: GPL-2.0-only
//! Little-endian fields in a message, addressed by the offsets of the C structures.
//!
//! Messages come from untrusted peers in buffers of any alignment. Reading them field by field, at
//! the offset that the header says (`offset_of!`), needs neither `unsafe` nor a second definition
//! of the layout.

/// Reads fields of one message. The caller has checked that the message is as long as the
/// structure whose offsets it uses; [`Fields::get`] panics otherwise, as slices do.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    fn get<const N: usize>(self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(self.bytes(offset, N));
        bytes
    }

    pub fn u16(self, offset: usize) -> u16 {
        u16::from_le_bytes(self.get(offset))
    }

    pub fn u32(self, offset: usize) -> u32 {
        u32::from_le_bytes(self.get(offset))
    }

    pub fn u64(self, offset: usize) -> u64 {
        u64::from_le_bytes(self.get(offset))
    }

    pub fn bytes(self, offset: usize, length: usize) -> &'a [u8] {
        &self.0[offset..offset + length]
    }

    /// A zero-padded string: the bytes before the padding, or `None` if anything follows a zero.
    pub fn padded(self, offset: usize, length: usize) -> Option<&'a [u8]> {
        let field = self.bytes(offset, length);
        let end = field.iter().position(|&b| b == 0).unwrap_or(length);
        field[end..].iter().all(|&b| b == 0).then(|| &field[..end])
    }
}

/// Writes fields of one message into a buffer of zeros.
pub(crate) struct FieldsMut(Vec<u8>);

impl FieldsMut {
    pub fn new(length: usize) -> Self {
        Self(vec![0; length])
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub fn u16(&mut self, offset: usize, value: u16) -> &mut Self {
        self.put(offset, &value.to_le_bytes());
        self
    }

    pub fn u32(&mut self, offset: usize, value: u32) -> &mut Self {
        self.put(offset, &value.to_le_bytes());
        self
    }

    pub fn u64(&mut self, offset: usize, value: u64) -> &mut Self {
        self.put(offset, &value.to_le_bytes());
        self
    }

    pub fn bytes(&mut self, offset: usize, bytes: &[u8]) -> &mut Self {
        self.put(offset, bytes);
        self
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// A constant or count of the ABI in the width of the field that carries it. The headers keep all
/// of them small, so a value that does not fit is a mistake in the headers, found by any test.
pub(crate) fn narrow<T: TryFrom<U>, U: Copy + std::fmt::Display>(value: U) -> T {
    T::try_from(value).unwrap_or_else(|_| panic!("{value} does not fit its field"))
}
