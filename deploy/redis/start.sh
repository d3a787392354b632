#!/bin/sh
# Start redis-server as creditd's cache: sh start.sh SERVICE_PASSWORD_FILE ADMIN_PASSWORD_FILE [--option value …]
#
# Each file holds one line, the password of the user `creditd` and of `creditd-admin`. Redis reads the users from
# its standard input, with the SHA-256 of each password in its place: passwords are in no other file, no command line and
# no variable. Options of redis-server win over redis.conf.
set -eu

recipe=$(dirname "$0")

sha256_of() {
    password=
    read -r password < "$1" || :
    if test "${#password}" -lt 16; then
        echo "start.sh: expected a password of at least 16 characters in $1" >&2
        exit 2
    fi
    printf '%s' "$password" | sha256sum | cut -d ' ' -f 1
}

service=$(sha256_of "$1")
admin=$(sha256_of "$2")
shift 2

exec redis-server "$recipe/redis.conf" "$@" - <<USERS
$(sed -e "s/SERVICE_SHA256/$service/" -e "s/ADMIN_SHA256/$admin/" "$recipe/users.acl")
USERS
