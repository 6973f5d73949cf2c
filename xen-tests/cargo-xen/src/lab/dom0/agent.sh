# The tool's hand in dom0: runs the command lines that come over the second serial port and sends
# back what they wrote. The protocol is described where the tool speaks it (lab/control.rs).

# A line with the size of a domain's console log, then what it holds from an offset on, at most so
# many bytes.
look() {
    log=/var/log/xen/console/guest-$1.log
    stat -c %s "$log" 2> /dev/null || echo 0
    [ "$3" -eq 0 ] || tail -c +$(($2 + 1)) "$log" 2> /dev/null | head -c "$3"
}

# Waits for a word on a domain's console, for ten seconds at least.
until_said() {
    tries=0
    until grep -q -s "$2" /var/log/xen/console/guest-$1.log; do
        tries=$((tries + 1))
        [ $tries -le 100 ] || return 1
        sleep 0.1
    done
}

# Waits for a domain to be no more, as long.
until_gone() {
    tries=0
    while xl domid "$1" > /dev/null 2>&1; do
        tries=$((tries + 1))
        [ $tries -le 100 ] || return 1
        sleep 0.1
    done
}

# The terminal of a domain's console, which xenconsoled makes some time after the domain.
console_of() {
    node=/local/domain/$(xl domid "$1")/console/tty
    tries=0
    until terminal=$(xenstore-read "$node") && [ -n "$terminal" ]; do
        tries=$((tries + 1))
        [ $tries -le 100 ] || return 1
        sleep 0.1
    done
    echo "$terminal"
}

# Has its input go to a terminal; fails while the last one is on its way there.
feed() {
    [ ! -e /run/fed ] || return 1
    [ -c "$1" ] || return 2
    cat > /run/fed
    { cat /run/fed > "$1"; rm /run/fed; } > /dev/null 2>&1 &
}

# Makes a device of a class between two domains, as libxl does: the front end for the one, the back end for the other. Each
# end is a directory that is its domain's, and that the other may read.
make_device() {
    front=/local/domain/$2/device/$1/0
    back=/local/domain/$3/backend/$1/$2/0
    xenstore-write $front '' $back '' && xenstore-chmod $front n$2 r$3 && xenstore-chmod $back n$3 r$2 &&
        xenstore-write $front/backend $back $front/backend-id $3 $front/state 1 \
            $back/frontend $front $back/frontend-id $2 $back/online 1 $back/state 1
}

# Takes it away, when the back end has closed or had the time to.
remove_device() {
    front=/local/domain/$2/device/$1/0
    back=/local/domain/$3/backend/$1/$2/0
    xenstore-write $back/online 0 $back/state 5
    tries=0
    until [ "$(xenstore-read $back/state)" = 6 ]; do
        tries=$((tries + 1))
        [ $tries -le 100 ] || return 1
        sleep 0.1
    done
    xenstore-rm $front && xenstore-rm $back
}

exec 3<> /dev/ttyS1
stty -F /dev/ttyS1 115200 raw -echo
cd /guests
echo "domu-agent ready" >&3
while read -r number length line <&3; do
    [ -n "$number" ] || continue
    input=/dev/null
    if [ "$length" -gt 0 ]; then
        input=/run/input
        dd bs="$length" count=1 iflag=fullblock of=$input <&3 2> /dev/null
    fi
    (eval "$line") > /run/answer 2>&1 < $input 3>&-
    status=$?
    length=$(stat -c %s /run/answer)
    { echo "=$number $status $length"; cat /run/answer; } >&3
done
echo "the control line has closed"
poweroff -f
