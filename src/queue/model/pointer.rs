//! A place in a JSON document, as errors name it: a JSON pointer (RFC 6901), step by step.

/// The step to the member `name` of an object, with the slash before it.
pub fn step(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_a_step_of_its_own_stands_within_it() {
        assert_eq!(step("a/b~c"), "/a~1b~0c");
    }
}
