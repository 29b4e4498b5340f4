# Sourced by dist_train.sh and dist_test.sh, with the number of processes: checks what
# torchrun would answer with a traceback.
case "$1" in
    auto | cpu | gpu | xpu) ;;  # torchrun counts them
    *[!0-9]* | '' | 0*)
        echo "error: GPUS is '$1': expected a number of processes, 1 or more." >&2
        exit 2 ;;
esac
for name in NNODES NODE_RANK PORT; do
    case "${!name-}" in
        *[!0-9]*)
            echo "error: $name is '${!name}': expected a number." >&2
            exit 2 ;;
    esac
done
if [ "${NODE_RANK:-0}" -ge "${NNODES:-1}" ]; then
    echo "error: NODE_RANK is '${NODE_RANK:-0}', but NNODES is '${NNODES:-1}': expected" \
        "0 for the first of NNODES machines, 1 for the second, ..." >&2
    exit 2
fi
if [ "${NODE_RANK:-0}" = 0 ] && ! "${PYTHON:-python}" -c 'import socket, sys
with socket.socket() as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("", int(sys.argv[1])))' "${PORT:-29500}" 2>/dev/null; then
    echo "error: port '${PORT:-29500}' is used by another program, or is no port. Set" \
        "PORT to another one, such as PORT=29501." >&2
    exit 2
fi
