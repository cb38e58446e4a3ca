//! Any bytes as what a kernel wrote into a receive ring.
//!
//! Input: version (odd is V2, even V3); the slot or the block. The walk asserts for itself that
//! every frame it lists can be handed out (`fdlink::fuzzing`).
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((version, memory)) = data.split_first() else {
        return;
    };
    let mut memory = memory.to_vec();
    if version & 1 == 1 {
        fdlink::fuzzing::v2_slot(&mut memory);
    } else {
        fdlink::fuzzing::v3_block(&mut memory);
    }
});
