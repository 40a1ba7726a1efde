//! What the cache had of a prompt, in words and in a sentence.

use protocol::{CacheMatch, CacheTier, MissCause};

/// How much of a prompt was reused, and why not more. `excerpt` makes text of tokens.
pub fn line(found: &CacheMatch, excerpt: &dyn Fn(&[u32]) -> String) -> String {
    let CacheMatch { usable_tokens, prompt_tokens, .. } = found;
    let from = match found.tier {
        _ if *usable_tokens == 0 => "",
        CacheTier::Device => " from the device",
        CacheTier::Host => " from the host's memory",
        CacheTier::Disk => " from the disk",
    };
    let why = why(found, excerpt);
    format!("cache: {usable_tokens} of {prompt_tokens} prompt tokens{from}; {why}")
}

/// A tier in one word.
pub fn tier(tier: CacheTier) -> &'static str {
    match tier {
        CacheTier::Device => "device",
        CacheTier::Host => "host",
        CacheTier::Disk => "disk",
    }
}

/// A cause in one word.
pub fn cause(cause: &MissCause) -> &'static str {
    match cause {
        MissCause::Complete => "complete",
        MissCause::StateAtEnd => "state_at_end",
        MissCause::NoCheckpoint => "no_checkpoint",
        MissCause::InFlight => "in_flight",
        MissCause::Slower => "slower",
        MissCause::NoRoom => "no_room",
        MissCause::Evicted => "evicted",
        MissCause::Diverged { .. } => "diverged",
        MissCause::NeverSeen => "never_seen",
    }
}

/// Why not more was reused. `excerpt` makes text of tokens.
pub fn why(found: &CacheMatch, excerpt: &dyn Fn(&[u32]) -> String) -> String {
    let matched = found.matched_tokens;
    match &found.cause {
        MissCause::Complete => "all that can be".to_owned(),
        MissCause::StateAtEnd => "the state there is stands at the prompt's very end".to_owned(),
        MissCause::NoCheckpoint => {
            format!("{matched} match, but there is no state to go on from further on")
        }
        MissCause::InFlight => "another request is computing the rest".to_owned(),
        MissCause::Slower => "bringing back more would take longer than computing it".to_owned(),
        MissCause::NoRoom => "the device has no room for more".to_owned(),
        MissCause::Evicted => "more was known and is evicted".to_owned(),
        MissCause::Diverged { at, cached, asked } => format!(
            "token {at} differs: cached is {:?}, asked is {:?}",
            excerpt(cached),
            excerpt(asked)
        ),
        MissCause::NeverSeen => "the rest was never seen".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::RequestId;

    #[test]
    fn every_cause_is_a_sentence() {
        let check = |usable_tokens, cause, expected: &str| {
            let found = CacheMatch {
                id: RequestId(1),
                prompt_tokens: 90,
                matched_tokens: 80,
                usable_tokens,
                tier: CacheTier::Host,
                cause,
            };
            let words = |tokens: &[u32]| tokens.iter().map(|t| format!("w{t} ")).collect();
            assert_eq!(line(&found, &words), expected);
        };
        check(0, MissCause::NeverSeen, "cache: 0 of 90 prompt tokens; the rest was never seen");
        check(
            64,
            MissCause::NoCheckpoint,
            "cache: 64 of 90 prompt tokens from the host's memory; 80 match, but there is no state \
             to go on from further on",
        );
        check(
            80,
            MissCause::Diverged { at: 80, cached: vec![4, 5], asked: vec![6] },
            "cache: 80 of 90 prompt tokens from the host's memory; token 80 differs: cached is \
             \"w4 w5 \", asked is \"w6 \"",
        );
    }
}
