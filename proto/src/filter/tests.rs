use std::borrow::Cow;

use super::*;
use crate::v1;

struct Request {
    method: &'static str,
    path: &'static str,
    query: &'static str,
    fields: &'static [(&'static str, &'static str)],
}

impl Head for Request {
    fn method(&self) -> &str {
        self.method
    }

    fn path(&self) -> &str {
        self.path
    }

    fn query(&self) -> &str {
        self.query
    }

    fn field(&self, name: &str) -> Option<Cow<'_, str>> {
        let named = self.fields.iter().filter(|(it, _)| *it == name);
        let values: Vec<&str> = named.map(|(_, value)| *value).collect();
        (!values.is_empty()).then(|| values.join(", ").into())
    }
}

const REQUEST: Request = Request {
    method: "GET",
    path: "/cart/items",
    query: "user=a%20b&page=2&user=c",
    fields: &[("x-user", "alice"), ("accept", "a"), ("accept", "b")],
};

fn filter(any: bool, conditions: Vec<Condition>) -> Filter {
    Filter::try_from(&HttpFilter { any, conditions }).unwrap()
}

fn alone(condition: Condition) -> Filter {
    filter(false, vec![condition])
}

#[test]
fn conditions_of_the_command_line_decide_as_documented() {
    for (condition, wanted) in [
        (Condition::header("X-User=alice"), true),
        (Condition::header("x-user=Alice"), false),
        (Condition::header("x-user~=al.*"), true),
        (Condition::header("x-user~=al"), false),
        (Condition::header("x-user"), true),
        (Condition::header("x-team"), false),
        (Condition::header("accept=a, b"), true),
        (Condition::path("/cart/items"), true),
        (Condition::path("/cart"), false),
        (Condition::path("/cart/*"), true),
        (Condition::path("/car/*"), false),
        (Condition::path("/cart/items/*"), true),
        (Condition::path("/*"), true),
        (Condition::path("~=/cart/[a-z]+"), true),
        (Condition::path(r"~=/\w+/\w+(/\w+)*"), true),
        (Condition::method("get"), true),
        (Condition::method("POST"), false),
        (Condition::query_param("user=a b"), true),
        (Condition::query_param("user=c"), false),
        (Condition::query_param("page~=[0-9]"), true),
        (Condition::query_param("sort"), false),
    ] {
        let text = condition.to_string();
        assert_eq!(alone(condition).matches(&REQUEST), wanted, "{text}");
    }
}

#[test]
fn all_must_hold_unless_any_is_enough() {
    let conditions = || vec![Condition::header("x-user=alice"), Condition::method("POST")];
    assert!(!filter(false, conditions()).matches(&REQUEST));
    assert!(filter(true, conditions()).matches(&REQUEST));
    let text = |any| {
        let conditions = conditions();
        HttpFilter { any, conditions }.to_string()
    };
    assert_eq!(text(false), "header x-user=alice and method POST");
    assert_eq!(text(true), "header x-user=alice or method POST");
}

#[test]
fn filters_are_apart_when_no_request_can_fit_both() {
    let user = |name: &str| Condition::header(&format!("x-user={name}"));
    let pairs = [
        (user("a"), user("b"), true),
        (user("a"), Condition::header("X-User=a"), false),
        (user("a"), Condition::header("x-team=b"), false),
        (user("a"), Condition::header("x-user~=b.*"), true),
        (user("b1"), Condition::header("x-user~=b.*"), false),
        (user("a"), Condition::header("x-user"), false),
        (Condition::path("/a/*"), Condition::path("/b/*"), true),
        (Condition::path("/a/*"), Condition::path("/a/b/*"), false),
        (Condition::path("/a/*"), Condition::path("/ab"), true),
        (Condition::path("/a/*"), Condition::path("/a"), false),
        (Condition::method("GET"), Condition::method("POST"), true),
    ];
    for (one, other, wanted) in pairs {
        let text = format!("{one}, {other}");
        let (one, other) = (alone(one), alone(other));
        assert_eq!(one.is_apart(&other), wanted, "{text}");
        assert_eq!(other.is_apart(&one), wanted, "{text}");
    }
    let get_a = filter(false, vec![user("a"), Condition::method("GET")]);
    let get_or_b = filter(true, vec![user("b"), Condition::method("GET")]);
    assert!(get_a.is_apart(&alone(user("b"))));
    assert!(!get_a.is_apart(&get_or_b));
}

#[test]
fn filters_stay_the_same_on_the_wire() {
    let filter = HttpFilter {
        any: true,
        conditions: vec![
            Condition::header("x-user~=a.*"),
            Condition::query_param("page"),
            Condition::path("/a/*"),
            Condition::method("GET"),
        ],
    };
    let message = v1::HttpFilter::from(filter.clone());
    assert_eq!(HttpFilter::try_from(message), Ok(filter));
    let unknown = v1::HttpFilter {
        conditions: vec![v1::HttpCondition::default()],
        ..v1::HttpFilter::default()
    };
    assert_eq!(HttpFilter::try_from(unknown), Err(UnknownCondition));
}

#[test]
fn nonsense_is_refused() {
    let refused = |condition: Condition| {
        let text = condition.to_string();
        let filter = HttpFilter {
            any: false,
            conditions: vec![condition],
        };
        Filter::try_from(&filter)
            .err()
            .unwrap_or_else(|| panic!("{text}"))
    };
    assert!(matches!(
        refused(Condition::header("x user=a")),
        FilterError::Name(_)
    ));
    assert!(matches!(
        refused(Condition::header("x~=(")),
        FilterError::Pattern { .. }
    ));
    assert!(matches!(
        refused(Condition::header("x~=a)|(?:b")),
        FilterError::Pattern { .. }
    ));
    assert!(matches!(
        refused(Condition::path("/cart*")),
        FilterError::Path(_)
    ));
    assert!(matches!(
        refused(Condition::path("cart")),
        FilterError::Path(_)
    ));
    assert!(matches!(
        refused(Condition::method("G ET")),
        FilterError::Method(_)
    ));
    let conditions = || vec![Condition::path("/a"), Condition::path("/b")];
    for (any, wanted) in [(false, Some(FilterError::Void)), (true, None)] {
        let conditions = conditions();
        let filter = Filter::try_from(&HttpFilter { any, conditions });
        assert_eq!(filter.err(), wanted);
    }
    let empty = Filter::try_from(&HttpFilter::default());
    assert_eq!(empty.err(), Some(FilterError::Empty));
}
