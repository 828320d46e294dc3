module kvpn.dev/lab/goresolve

go 1.26.0
