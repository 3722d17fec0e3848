//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).

/// A running ones' complement sum of 16-bit words.
///
/// It is kept in the machine's byte order, which is allowed (RFC 1071 section 2, part B), so that the loop over the
/// bytes needs no swaps.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes, which must begin at an even offset of what is summed. An odd last byte is padded.
    #[inline]
    pub(crate) fn bytes(self, data: &[u8]) -> Self {
        let (words, rest) = data.as_chunks::<8>();
        let (fours, words) = words.as_chunks::<4>();
        // Words as wide as a register, with the carries in the upper half: an addition and one with carry for each.
        // Smaller ones are as fast only where the compiler makes vector instructions of them, which it does not in a
        // program that is optimised for size over all its crates. Two sums needn't wait for each other.
        let wide = |word: [u8; 8]| u128::from(u64::from_ne_bytes(word));
        let (mut one, mut other) = (0, 0);
        for [first, second, third, fourth] in fours {
            one += wide(*first);
            other += wide(*second);
            one += wide(*third);
            other += wide(*fourth);
        }
        one += words.iter().map(|word| wide(*word)).sum::<u128>() + other;
        let mut sum = (one >> 64) as u64 + (one as u64 >> 32) + u64::from(one as u32);
        let (words, odd) = rest.as_chunks::<2>();
        for word in words {
            sum += u64::from(u16::from_ne_bytes(*word));
        }
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(self.0 + sum)
    }

    /// Adds one word.
    pub(crate) fn word(self, word: u16) -> Self {
        Self(self.0 + u64::from(word.to_be()))
    }

    /// The folded sum, not complemented: what a packet that leaves its checksum to a device carries.
    pub(crate) fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::from_be(sum as u16)
    }

    /// The checksum: the complement of the folded sum.
    pub(crate) fn checksum(self) -> u16 {
        !self.folded()
    }

    /// Whether the summed bytes, including their checksum, are intact.
    pub(crate) fn is_intact(self) -> bool {
        self.folded() == 0xffff
    }
}

/// The checksum after a word that it covers has changed (RFC 1624 section 3, equation 3).
pub(crate) fn updated(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::default().word(!checksum).word(!old).word(new).checksum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 to the letter.
    fn slow(data: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for pair in data.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn agrees_with_the_example_of_rfc_1071() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
    }

    proptest! {
        #[test]
        fn agrees_with_the_slow_sum(data: Vec<u8>, words: Vec<u16>) {
            let mut all: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
            all.extend(&data);
            let sum = words.iter().fold(Sum::default(), |sum, word| sum.word(*word)).bytes(&data);
            prop_assert_eq!(sum.folded(), slow(&all));
        }

        #[test]
        fn an_update_keeps_the_packet_intact(mut words in prop::collection::vec(any::<u16>(), 2..40), new: u16) {
            let sum = |words: &[u16]| words.iter().fold(Sum::default(), |sum, word| sum.word(*word));
            words[0] = 0;
            words[0] = sum(&words).checksum();
            words[0] = updated(words[0], words[1], new);
            words[1] = new;
            prop_assert!(sum(&words).is_intact() || sum(&words).folded() == 0);
        }
    }
}
