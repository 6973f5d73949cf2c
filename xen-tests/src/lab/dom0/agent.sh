# The tool's hand in dom0: runs the command lines that come over the second serial port and sends
# back what they wrote. The protocol is described where the tool speaks it (lab/control.rs).

# A line with the size of a domain's console log, then what it holds from an offset on, at most so
# many bytes.
look() {
    log=/var/log/xen/console/guest-$1.log
    stat -c %s "$log" 2> /dev/null || echo 0
    [ "$3" -eq 0 ] || tail -c +$(($2 + 1)) "$log" 2> /dev/null | head -c "$3"
}

exec 3<> /dev/ttyS1
stty -F /dev/ttyS1 115200 raw -echo
cd /guests
echo "domu-agent ready" >&3
while read -r number line <&3; do
    (eval "$line") > /run/answer 2>&1 < /dev/null 3>&-
    status=$?
    length=$(stat -c %s /run/answer)
    { echo "=$number $status $length"; cat /run/answer; } >&3
done
echo "the control line has closed"
poweroff -f
