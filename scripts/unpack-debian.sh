#!/usr/bin/env bash
# Third parties that the tests speak to, unpacked and not installed: GAVO DaCHS, a TAP server, and STILTS, whose
# taplint checks one. Nothing outside of one directory changes, and no user has to be the super-user. Without them
# their tests are skipped. Java and PostgreSQL 15 have to be installed.
#
# Usage: unpack-debian.sh [DIRECTORY]
set -euo pipefail

version=1
if [[ -n ${1:-${BEAMPIPE_TEST_DEBIAN:-}} ]]; then
    target=${1:-$BEAMPIPE_TEST_DEBIAN}
elif [[ $(id -u) == 0 ]]; then
    # PostgreSQL does not run as root, and must be able to read this.
    target=/var/cache/beampipe-dagster/debian
else
    target=${XDG_CACHE_HOME:-$HOME/.cache}/beampipe-dagster/debian
fi
if [[ $(cat "$target/.unpacked" 2>/dev/null) == "$version" ]]; then
    exit 0
fi
for program in apt-get dpkg-deb; do
    if ! command -v "$program" >/dev/null; then
        echo "no $program: DaCHS and STILTS are not unpacked, and their tests are skipped"
        exit 0
    fi
done
postgres=/usr/lib/postgresql/15
if [[ ! -e $postgres/bin/initdb ]]; then
    echo "no PostgreSQL 15: DaCHS and STILTS are not unpacked, and their tests are skipped"
    exit 0
fi

dachs=(
    python3-gavo python3-gavo-utils python3-gavo-stc python3-gavo-votable python3-astropy python3-numpy python3-erfa
    liberfa1 libwcs7 libcfitsio10 libblas3 liblapack3 libgfortran5 python3-twisted python3-attr python3-automat
    python3-constantly python3-hyperlink python3-idna python3-incremental python3-zope.interface
    python3-service-identity python3-pyasn1 python3-pyasn1-modules python3-bcrypt python3-hamcrest python3-psycopg2
    python3-lxml python3-docutils docutils-common python3-roman python3-pil libimagequant0 libraqm0 libwebpdemux2
    libwebpmux3 libopenjp2-7 python3-pymoc python3-rjsmin python3-testresources python3-unittest2 python3-pbr
    python3-ply python3-packaging python3-configobj python3-matplotlib python-matplotlib-data python3-contourpy
    python3-cycler python3-dateutil python3-kiwisolver python3-fonttools libqhull-r8.0 libhealpix-cxx3 libsharp0
    python3-pkg-resources python3-six python3-pyparsing python3-tz libjs-jquery-flot
    postgresql-15-pgsphere postgresql-15-q3c
)
stilts=(
    stilts adql-java libvecmath-java eag-healpix-java jel-java libactivation-java libandroid-json-org-java
    libcommons-logging-java libcommons-discovery-java libcommons-codec-java libcommons-httpclient-java libmail-java
    libwsdl4j-java libaxis-java libbcprov-java libbcutil-java libbcpkix-java libbcmail-java libcds-healpix-java
    libcommons-compress-java libfits-java libhealpix-java libcds-moc-java libcommons-math3-java libij-java
    libitext-java libjfreesvg-java libjide-oss-java libjlatexmath-java libjlibeps-java libjsamp-java
    libservlet-api-java skyview-java starlink-util-java starlink-array-java starlink-connect-java starlink-pal-java
    starlink-table-java starlink-dpac-java starlink-fits-java starlink-registry-java starlink-task-java
    starlink-tfcat-java starlink-tjoin-java starlink-votable-java starlink-vo-java starlink-ttools-java
)

echo "unpacking DaCHS and STILTS into $target"
mkdir -p "$(dirname "$target")"
work=$(mktemp -d "$target.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/debs"
if ! (cd "$work/debs" && apt-get download -qq "${dachs[@]}" "${stilts[@]}") >"$work/log" 2>&1; then
    # Root's lists may be old; another user has to live with those that there are.
    if [[ $(id -u) != 0 ]] || ! apt-get update -qq >>"$work/log" 2>&1 ||
        ! (cd "$work/debs" && apt-get download -qq "${dachs[@]}" "${stilts[@]}") >>"$work/log" 2>&1; then
        tail -n 3 "$work/log"
        echo "DaCHS and STILTS cannot be had, and their tests are skipped"
        exit 0
    fi
fi
for package in "$work"/debs/*.deb; do
    dpkg-deb -x "$package" "$work"
done
rm -rf "$work"/debs "$work"/usr/share/{doc,locale,man}
# The extensions have to be where the server looks for them: beside itself.
mkdir -p "$work$postgres" "$work/usr/share/postgresql/15"
cp -a "$postgres/." "$work$postgres/"
cp -a /usr/share/postgresql/15/. "$work/usr/share/postgresql/15/"
rm -rf "$work$postgres/lib/bitcode"
echo "$version" >"$work/.unpacked"
rm -rf "$target"
mv "$work" "$target"
trap - EXIT
