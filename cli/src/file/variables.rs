//! `${NAME}` in the strings of a file.

/// Where values come from.
pub(super) type Variables<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Puts the values of variables in their places: `${NAME}`, `${NAME:-default}` for those that
/// are unset or empty, and `$$` for `$`. Other dollars are as they are.
pub(super) fn expand(text: &str, value: &Variables<'_>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        expanded += before;
        rest = if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            after
        } else if let Some(after) = after.strip_prefix('{') {
            let (variable, after) = after
                .split_once('}')
                .ok_or("`${` has no `}`; write `$${` for the characters themselves")?;
            expanded += &of(variable, value)?;
            after
        } else {
            expanded.push('$');
            after
        };
    }
    Ok(expanded + rest)
}

/// The value of what is between the braces.
fn of(variable: &str, value: &Variables<'_>) -> Result<String, String> {
    let (name, default) = match variable.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (variable, None),
    };
    if !is_name(name) {
        return Err(format!(
            "`${{{variable}}}` is neither ${{NAME}} nor ${{NAME:-default}}"
        ));
    }
    match (value(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("the variable {name} is not set")),
    }
}

fn is_name(name: &str) -> bool {
    let fits = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    name.chars().all(fits) && name.starts_with(|first: char| !first.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        expand(text, &|name| match name {
            "USER" => Some("alice".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_replaced_and_other_dollars_stay() {
        for (text, expected) in [
            ("", ""),
            ("x-user=${USER}", "x-user=alice"),
            ("${USER}${USER:-bob}", "alicealice"),
            ("${EMPTY}|${EMPTY:-bob}", "|bob"),
            ("${NONE:-}|${NONE:-a b:-c}", "|a b:-c"),
            ("$USER $(id) 5$", "$USER $(id) 5$"),
            ("$${USER} $$$$", "${USER} $$"),
            ("$$${USER}", "$alice"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_has_no_value_is_named() {
        for (text, why) in [
            ("a ${NONE}", "the variable NONE is not set"),
            ("${USER", "`${` has no `}`"),
            ("${}", "`${}` is neither"),
            ("${1ST}", "`${1ST}` is neither"),
            ("${USER-bob}", "`${USER-bob}` is neither"),
        ] {
            let error = expanded(text).unwrap_err();
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }
}
